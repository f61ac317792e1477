"""Rewards with their uncertainty."""
