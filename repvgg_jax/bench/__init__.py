"""Costs of networks: counted, compiled and timed."""
