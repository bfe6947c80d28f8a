"""Benchmarks, studies and ablation sweeps; they write the tables in `docs/`."""
