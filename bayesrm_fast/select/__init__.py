"""Which candidate to pick."""
