"""Rewards less their uncertainty, as trainers take them."""
