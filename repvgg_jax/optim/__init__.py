"""Optimizers and the exponential moving average."""
