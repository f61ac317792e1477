"""Micro-benchmarks: one call of one thing, to be compared between two commits."""
