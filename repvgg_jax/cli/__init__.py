"""The commands of main.py, one module each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from repvgg_jax.cli.evaluate import run_eval
from repvgg_jax.cli.fuse import run_fuse
from repvgg_jax.cli.train import run_train

MODES: dict[str, Callable[[ConfigDict | None, Path], None]] = {
    "train": run_train,
    "eval": run_eval,
    "fuse": run_fuse,
}
