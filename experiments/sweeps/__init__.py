"""Ablation sweeps: definition, execution and status."""
