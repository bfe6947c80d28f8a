"""A process that locks a workdir."""

HOLDER = """
import sys, time
from pathlib import Path
from repvgg_jax.runtime.lock import locked
with locked(Path(sys.argv[1]), name=sys.argv[2] if sys.argv[2:] else "lock"):
    print("held", flush=True)
    time.sleep(600)
"""
