"""Best-of-n by a reward model that over-optimises: what absolute, relative and no uncertainty choose."""
