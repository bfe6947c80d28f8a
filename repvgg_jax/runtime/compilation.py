"""Compilation: the program cache on disk, the optimization barrier, and compile times."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax import Array, lax

from repvgg_jax.errors import one_line
from repvgg_jax.runtime.devices import on_cpus, target_devices

_KEPT_BYTES = 4 * 2**30
# A program below this is compiled about as fast as it is read.
_WORTH_KEEPING_SECONDS = 0.1


def cache_folder() -> Path:
    """Where what this machine has made for itself is kept: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "repvgg_jax"


def keep_programs() -> None:
    """Have JAX keep compiled programs, so that a run like an earlier one starts without compiling.

    In the folder `JAX_COMPILATION_CACHE_DIR`, else in one of our own, which is held below 4 GiB.
    `JAX_ENABLE_COMPILATION_CACHE=false` switches it off, and JAX's other settings hold where they
    are set. A folder that cannot be written to costs a warning, and no more.
    """
    if not jax.config.jax_enable_compilation_cache:
        return
    given = jax.config.jax_compilation_cache_dir
    if given and "://" in given:  # a bucket, which is for JAX to reach
        folder = given
    else:
        try:
            folder = Path(given) if given else cache_folder() / "xla"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # programs are trusted
            with tempfile.TemporaryFile(dir=folder):
                pass
            if not given:
                drop_oldest(folder, _KEPT_BYTES)
        except (OSError, RuntimeError) as error:  # the latter where there is no home
            jax.config.update("jax_enable_compilation_cache", False)
            logging.warning(
                "compiled programs are not kept: %s cannot be written to (%s); "
                "JAX_COMPILATION_CACHE_DIR names another folder",
                *(given or "~/.cache/repvgg_jax/xla", one_line(error)),
            )
            return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    settings = {
        "jax_persistent_cache_min_compile_time_secs": _WORTH_KEEPING_SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": -1,  # of any size
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def drop_oldest(folder: Path, limit: int) -> None:
    """Remove the files of a folder that were not used for longest, down to `limit` bytes in all."""
    found = []
    for path in folder.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:  # another run is here too
            continue
        if path.is_file():
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size


def barrier(x: Array) -> Array:
    """Returns `x`, and keeps XLA:CPU from recomputing it, or its gradient, for each of its uses.

    XLA fuses elementwise operations into their users, and the identity branches of a stage are one
    long elementwise path. Without a barrier between blocks, each fusion on a CPU recomputes the
    path through all blocks before it, and in the backward pass through all after it: a training
    step takes twice as long, an evaluation of 80 layers six times, and both compile five times as
    long or more (docs/notes/speed.md).

    The barrier holds only in a function that `jit` of this module compiled, since XLA:CPU otherwise
    drops barriers before it fuses. On a GPU or TPU this is `x` itself: their backends weigh the
    cost of recomputing.
    """
    return lax.optimization_barrier(x) if on_cpus() else x


def jit(
    function: Callable[..., Any], devices: Sequence[jax.Device] | None = None, **jit_options: Any
) -> jax.stages.Wrapped:
    """Returns `jax.jit(function, **jit_options)`, compiled so that `barrier` holds.

    Use it for whatever applies a net: a training step, an evaluation, a forward pass. On a CPU it
    disables the XLA pass that drops barriers; elsewhere it is `jax.jit`.

    Args:
      function: function to compile.
      devices: devices it will run on; by default those of `target_devices`.
      **jit_options: keyword arguments of `jax.jit`.
    """
    platform = (target_devices() if devices is None else devices)[0].platform
    options = {"xla_disable_hlo_passes": "cse_barrier_expander"} if platform == "cpu" else None
    return jax.jit(function, compiler_options=options, **jit_options)


def temporaries_bytes(compiled: jax.stages.Compiled) -> int | None:
    """What a program takes besides its arguments and results; None where its backend won't say."""
    memory = compiled.memory_analysis()
    return None if memory is None else memory.temp_size_in_bytes


class StartupTimer:
    """A stopwatch that runs from its construction to the end of the first training step.

    Attributes:
      seconds: wall time until `stop`; None before.
      compile_seconds: part of `seconds` spent compiling programs or reading cached ones; None
        before `stop`.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.compile_seconds: float | None = None
        self._start = time.monotonic()
        self._compiled_before = _compile_seconds()[0]

    def stop(self) -> None:
        """Stops the stopwatch."""
        self.seconds = time.monotonic() - self._start
        self.compile_seconds = _compile_seconds()[0] - self._compiled_before


@cache
def _compile_seconds() -> list[float]:
    """One number, the seconds that this process has spent compiling since the first call."""
    total = [0.0]

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            total[0] += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    return total
