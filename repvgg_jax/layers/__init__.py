"""Flax layers shared by all nets."""
