"""Fusion of a train form, and verification that both forms agree."""
