"""Flax layers that all nets share."""
