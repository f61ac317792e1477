"""Reward models on public benchmarks: their scores as published, and what the uncertainty is worth there."""
