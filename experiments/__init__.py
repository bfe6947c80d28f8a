"""Benchmarks, studies and ablation sweeps; they write the tables in `docs/`."""

import importlib.util
import sys

if importlib.util.find_spec("jax") is None:  # as main.py says it
    print(
        f"error: {sys.executable} has no jax: activate the environment in this shell "
        "(source .venv/bin/activate), or make it first (make setup)",
        file=sys.stderr,
    )
    sys.exit(2)
