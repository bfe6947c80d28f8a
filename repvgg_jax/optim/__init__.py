"""Optimizers and the exponential moving average (EMA)."""
