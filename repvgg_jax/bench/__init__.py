"""Counts, compiles and times networks to measure their costs."""
