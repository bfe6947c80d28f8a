"""Fusion of the train form, and verification of the fused form."""
