"""Compilation: the persistent cache, the optimization barrier, and compile times."""

import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from absl import logging
from jax import lax
from jax._src.config import threefry_gpu_kernel_lowering  # no public module has these two
from jax._src.core import trace_state_clean
from jax.experimental.xla_metadata import set_xla_metadata

from repvgg_jax.errors import one_line
from repvgg_jax.runtime.devices import target
from repvgg_jax.runtime.files import local_path

T = TypeVar("T")

_MAX_CACHE_BYTES = 4 * 2**30
_CACHE_SETTINGS = {
    # Compiling a smaller program again is faster than reading it from disk.
    "jax_persistent_cache_min_compile_time_secs": 0.1,
    "jax_persistent_cache_min_entry_size_bytes": -1,  # any size
}


def cache_folder() -> Path:
    """Returns the folder of this package's compiled files, in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "repvgg_jax"


def keep_programs() -> None:
    """Enables JAX's persistent compilation cache, so that repeated runs start without compiling.

    The cache is in `JAX_COMPILATION_CACHE_DIR` if set, else in `cache_folder()/xla`, whose size is
    kept below 4 GiB. `JAX_ENABLE_COMPILATION_CACHE=false` disables the cache, and JAX's other
    environment variables override its settings. If the folder is not writable, logs a warning.
    """
    folder = programs_folder()
    if folder is None:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not jax.config.jax_compilation_cache_dir:
        drop_oldest(Path(folder), _MAX_CACHE_BYTES)
    jax.config.update("jax_compilation_cache_dir", folder)
    for name, value in _CACHE_SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def programs_folder() -> str | None:
    """Returns the folder or bucket in which `keep_programs` keeps programs.

    Returns None if the cache is disabled, or if the folder is not writable, with a warning.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    given = jax.config.jax_compilation_cache_dir
    if given and "://" in given:  # JAX opens buckets itself
        return given
    try:
        folder = local_path(given) if given else cache_folder() / "xla"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # cached programs are trusted
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        logging.warning(
            "compiled programs are not cached: %s is not writable (%s); "
            "set JAX_COMPILATION_CACHE_DIR to another folder",
            given or "~/.cache/repvgg_jax/xla",
            one_line(error),
        )
        return None
    return str(folder)


def drop_oldest(folder: Path, limit: int) -> None:
    """Removes the least recently used files of a folder until its size is at most `limit` bytes.

    Files that cannot be removed are left, such as another user's in a shared folder.
    """
    found = []
    for path in folder.iterdir():
        with suppress(OSError):  # another run may have removed it
            status = path.stat()
            if path.is_file():
                found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        with suppress(OSError):
            path.unlink(missing_ok=True)
            total -= size


# XLA:CPU removes the optimization barriers by which `jax.checkpoint` separates recomputed values
# from stored ones, and then merges them, so that rematerialization saves nothing.
KEEP_RECOMPUTATION = {"xla_disable_hlo_passes": "cse_barrier_expander"}

_CUDA_GRAPHS = "xla_gpu_enable_command_buffer"
# XLA's default, and convolutions and loops.
_IN_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,"
_IN_GRAPHS += "CONVOLUTION,CONDITIONAL,WHILE"


def cuda_graphs(devices: Sequence[jax.Device]) -> dict[str, str]:
    """Returns compiler options that make a whole loop one CUDA graph; none for other devices.

    The GPU then starts kernels without the host: the training steps of small nets take 0.69 of the
    time (docs/notes/speed_gpu.md). By default, XLA's graphs contain neither convolutions nor loops,
    and a step is hundreds of small graphs. The user's XLA_FLAGS take precedence.
    """
    if devices[0].platform != "gpu" or _CUDA_GRAPHS in os.environ.get("XLA_FLAGS", ""):
        return {}
    for device in devices:
        _start_cudnn(device)
    return {_CUDA_GRAPHS: _IN_GRAPHS}


def _start_cudnn(device: jax.Device) -> None:
    """Runs a convolution, for which XLA starts cuDNN.

    cuDNN cannot start while XLA records a graph ("No DNN support for stream"). XLA also starts it
    to compile a convolution, but not if it reads the program from JAX's cache.
    """
    shapes = (1, 4, 8, 8), (4, 4, 3, 3)
    images, kernel = (jax.device_put(np.ones(shape, np.float32), device) for shape in shapes)
    jax.block_until_ready(lax.conv(images, kernel, (1, 1), "SAME"))


def barrier(x: T) -> T:
    """Returns `x`, a tree of arrays, behind an optimization barrier if the target is a CPU.

    XLA fuses elementwise operations into their users, and the identity branches of a stage form one
    long elementwise path. Without a barrier between blocks, each fusion on a CPU recomputes the
    path through all earlier blocks, and in the backward pass through all later ones: a training
    step takes twice as long, and evaluating a net of 80 layers six times as long
    (docs/notes/speed.md). XLA's GPU and TPU backends need no barrier, since they weigh the cost of
    recomputation.
    """
    if not target().is_cpu:
        return x
    # XLA:CPU removes optimization barriers before it fuses, but never fuses across a call.
    with set_xla_metadata(inlineable="false"):
        return _barrier(x)


@jax.jit
def _barrier(x: T) -> T:
    # As this is not the identity, JAX's differentiation does not remove the call.
    return lax.optimization_barrier(x)


# LLVM's optimizations take most of the time to compile a program for a CPU.
FEW_OPTIMIZATIONS = {"xla_backend_optimization_level": 1}


def jit_once(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """Returns `function` under `jax.jit`, for programs that run once or a few times.

    On a CPU they are optimized less, and compile two to three times as fast: random initialization
    would otherwise compile as long as the training step (docs/notes/speed.md). Settings are those
    of `jax.jit`.
    """
    optimized = jax.jit(function, **settings)
    once = jax.jit(function, compiler_options=FEW_OPTIMIZATIONS, **settings)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        if not trace_state_clean():  # JAX allows options outside of other transformations only
            return optimized(*arguments)
        with random_bits_by_kernel():
            return (once if few_optimizations() else optimized)(*arguments)

    return call


def random_bits_by_kernel() -> AbstractContextManager[None]:
    """Makes programs for GPUs, lowered in the context, call JAX's kernel for random bits.

    Otherwise, XLA compiles the generator again for each array, so that the initialization of a
    small net compiles for 8.6 instead of 0.8 seconds (docs/notes/speed_gpu.md). The bits are the
    same. The kernel is not split over devices, nor fused with what uses its bits.
    """
    return threefry_gpu_kernel_lowering(True)


def few_optimizations() -> dict[str, Any]:
    """Returns compiler options for a program that runs once; none unless the target is a CPU.

    A level of optimization in the user's XLA_FLAGS takes precedence.
    """
    given = next(iter(FEW_OPTIMIZATIONS)) in os.environ.get("XLA_FLAGS", "")
    return FEW_OPTIMIZATIONS if target().is_cpu and not given else {}


def temporaries_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Returns the size of a program's temporary buffers in bytes; None if unknown."""
    memory = compiled.memory_analysis()
    return None if memory is None else memory.temp_size_in_bytes


# Start of the line that a run prints when its first step is done, and its programs are compiled.
FIRST_STEP = "first step after"


class StartupTimer:
    """A timer that runs from its construction to the end of the first training step.

    Attributes:
      began: `time.monotonic()` at the construction.
      seconds: wall-clock time; None before `stop`.
      compile_seconds: part of it in which a program was compiled or read from the cache, or
        several at once; None before `stop`.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.compile_seconds: float | None = None
        self.began = time.monotonic()
        _compilations()  # starts to record

    def stop(self) -> None:
        """Stops the timer and sets both attributes."""
        self.seconds = time.monotonic() - self.began
        self.compile_seconds = _union(self._since())

    def compiled(self) -> dict[str, float]:
        """Returns the seconds spent on each compiled function since the construction."""
        total: Counter[str] = Counter()
        for compilation in self._since():
            total[compilation.function] += compilation.end - compilation.start
        return dict(total.most_common())

    def _since(self) -> list["_Compilation"]:
        return [each for each in _compilations() if each.start >= self.began]


class _Compilation(NamedTuple):
    """The compilation of a function, with times of `time.monotonic()`."""

    function: str
    start: float
    end: float


@cache
def _compilations() -> list[_Compilation]:
    """Returns the compilations of this process since the first call; the list grows."""
    found: list[_Compilation] = []

    def listen(event: str, seconds: float, fun_name: str = "", **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            end = time.monotonic()
            name = fun_name.removeprefix("jit(").removesuffix(")")
            found.append(_Compilation(name, end - seconds, end))

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


def _union(compilations: Sequence[_Compilation]) -> float:
    """Returns the seconds in which at least one function was compiled."""
    total, covered = 0.0, -math.inf
    for _, start, end in sorted(compilations, key=lambda each: each.start):
        total += max(0.0, end - max(start, covered))
        covered = max(covered, end)
    return total
