"""Checkpoints and fused weights of a run."""
