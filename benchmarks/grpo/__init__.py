"""Over-optimisation in training."""
