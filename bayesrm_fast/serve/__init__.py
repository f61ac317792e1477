"""Reward models inside other programs: an engine that merges requests into batches."""
