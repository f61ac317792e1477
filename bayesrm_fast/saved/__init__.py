"""Models, adapters and posteriors on disk."""
