"""Devices of this process: their platform, and the allocator settings of a CPU."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import jax

_TARGET: ContextVar[tuple[jax.Device, ...] | None] = ContextVar("target", default=None)


def target_devices() -> Sequence[jax.Device]:
    """Returns the devices that programs are compiled for: all there are, unless `compiling_for`."""
    return _TARGET.get() or jax.devices()


def on_one_cpu() -> bool:
    """Returns whether `target_devices` is a single CPU device."""
    return on_cpus() and len(target_devices()) == 1


def on_cpus() -> bool:
    """Returns whether `target_devices` are CPU devices."""
    return target_devices()[0].platform == "cpu"


@contextmanager
def compiling_for(devices: Sequence[jax.Device]) -> Iterator[None]:
    """What is traced within is for these devices, which need not be here."""
    token = _TARGET.set(tuple(devices))
    try:
        yield
    finally:
        _TARGET.reset(token)


# TPU hosts have files of the one kind or the other.
_DEVICE_FILES = (
    ("cuda", "/dev", r"nvidia(\d+)"),
    ("tpu", "/dev", r"accel(\d+)"),
    ("tpu", "/dev/vfio", r"(\d+)"),
)


def devices_here(environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """`("cuda", ["0", "1"])`, without starting a backend, which would take the devices' memory."""
    wanted = environment.get("JAX_PLATFORMS", "").split(",")[0]
    if wanted == "cpu":
        return "cpu", []
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        indices = [index for index in visible.split(",") if index not in ("", "-1")]
        return ("cuda", indices) if indices else ("cpu", [])
    for platform, folder, pattern in _DEVICE_FILES:
        found = (re.fullmatch(pattern, path.name) for path in Path(folder).glob("*"))
        if indices := sorted(int(match[1]) for match in found if match):
            return platform, [str(index) for index in indices]
    return wanted if wanted == "tpu" else "cpu", []


def keep_freed_memory() -> bool:
    """Let the C library keep what large arrays leave behind; False where it has no such switch.

    XLA's buffers on a CPU are allocated for every run of a program. By default glibc hands large
    ones back to the system, which zeroes each page anew when the next run touches it. For the whole
    process, from before it has threads; it holds on to the most that it ever needed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD and M_ARENA_MAX of malloc.h. A thread's own arena has
    # no room for more than 64 MB, and asks the system for those whatever the first of these says.
    return all([mallopt(-4, 0), mallopt(-1, 2**31 - 1), mallopt(-2, 2**26), mallopt(-8, 1)])
