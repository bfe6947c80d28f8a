"""Devices: the target of a compilation, and the devices of this machine.

Some functions are traced differently for different targets: oneDNN and branch statistics from
input moments are used on a single CPU device, and optimization barriers on CPUs. `compiling_for`
declares a target other than the devices of this process. It sets a context variable, because Flax
cannot pass the target through the layers to the operations that need it.
`jax.lax.platform_dependent` does not depend on the number of devices, and each of its branches
would save its own values for the backward pass.
"""

import ctypes
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import jax

from repvgg_jax.errors import RunError, UsageError, one_line


class Target(NamedTuple):
    """The target of a compilation.

    Attributes:
      devices: devices that the program will run on.
      xla_only: True to use XLA's convolutions only, so that the program's FLOPs can be counted.
    """

    devices: Sequence[jax.Device]
    xla_only: bool = False

    @property
    def is_cpu(self) -> bool:
        """True if the devices are CPU devices."""
        return self.devices[0].platform == "cpu"

    @property
    def is_one_cpu(self) -> bool:
        """True if the target is a single CPU device."""
        return self.is_cpu and len(self.devices) == 1


_TARGET: ContextVar[Target | None] = ContextVar("target", default=None)


def target() -> Target:
    """Returns the target set by `compiling_for`, or else all devices of this process."""
    return _TARGET.get() or Target(jax.devices())


@contextmanager
def compiling_for(devices: Sequence[jax.Device], *, xla_only: bool = False) -> Iterator[None]:
    """Sets the target of all functions traced in the context; the devices need not exist here."""
    token = _TARGET.set(Target(tuple(devices), xla_only))
    try:
        yield
    finally:
        _TARGET.reset(token)


def available_devices() -> list[jax.Device]:
    """Returns the devices of all processes.

    Raises:
      RunError: if JAX falls back to the CPU, since the GPU that it is installed for did not start.
        Training would take a hundred times as long.
    """
    devices = jax.devices()
    if jax.config.jax_platforms or jax.config.read("jax_platform_name"):
        return devices  # of a platform that the user or the program has chosen
    if devices[0].platform == "cpu" and devices_here(os.environ)[0] == "cuda" and _has_cuda():
        raise RunError(
            "JAX could not start this machine's GPU (its own message is above), and would use the "
            "CPU; JAX_PLATFORMS=cuda names the cause, and JAX_PLATFORMS=cpu runs on the CPU"
        )
    return devices


def _has_cuda() -> bool:
    """Returns True if JAX's plugin for CUDA is installed."""
    return any("cuda" in plugin.value for plugin in entry_points(group="jax_plugins"))


def cpu_cores() -> int | None:
    """Returns the number of CPU cores that this process may use; None if unknown."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def memory_bytes(device: jax.Device) -> int:
    """Returns the memory of a device that JAX may use; CPU devices share the host's equally."""
    statistics = device.memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return host // len(jax.local_devices(backend=device.platform))


# TPU hosts have either of the two kinds of device files.
_DEVICE_FILES = (
    ("cuda", "/dev", r"nvidia\d+"),
    ("tpu", "/dev", r"accel\d+"),
    ("tpu", "/dev/vfio", r"\d+"),
)


def devices_here(environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """Returns the platform and indices of this machine's devices, such as ("cuda", ["0", "1"]).

    It does not initialize JAX's backend, which would reserve the devices' memory.
    """
    wanted, *others = environment.get("JAX_PLATFORMS", "").split(",")
    if wanted == "cuda" and "cpu" in others:
        wanted = ""  # JAX falls back to the CPU, as it does not for other platforms
    if wanted == "cpu":
        return "cpu", []
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        indices = [index for index in visible.split(",") if index not in ("", "-1")]
        return ("cuda", indices) if indices or wanted == "cuda" else ("cpu", [])
    for platform, folder, pattern in _DEVICE_FILES:
        files = [path for path in Path(folder).glob("*") if re.fullmatch(pattern, path.name)]
        if files:  # their numbers are those of the host, of which a container may have a part
            return platform, [str(index) for index in range(len(files))]
    # WSL has one device file, whatever the number of GPUs.
    absent = wanted == "tpu" or (wanted == "cuda" and not Path("/dev/dxg").exists())
    return wanted if absent else "cpu", []


# What a platform of JAX needs besides JAX itself.
_NEEDS = {
    "cpu": "nothing",
    "cuda": 'an NVIDIA GPU, its driver, and pip install "jax[cuda13]" or "jax[cuda12]"',
    "gpu": 'to be cuda or rocm, and for cuda pip install "jax[cuda13]" or "jax[cuda12]"',
    "rocm": "an AMD GPU and JAX's ROCm plugin",
    "tpu": 'a TPU and pip install "jax[tpu]"',
}
# Causes that do not pass by themselves.
_LASTING = re.compile(
    r"known backends|open libtpu|\bno .*(device|platform)|NO_DEVICE|driver", re.IGNORECASE
)


@contextmanager
def explaining_absent_devices() -> Iterator[None]:
    """Explains JAX's error in one line, if JAX cannot start the devices that it was told to use.

    Raises:
      UsageError: if `JAX_PLATFORMS` names a platform that is unknown, or has no plugin or device.
      RunError: if the devices cannot be started, but might be later.
    """
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        # For CUDA without a GPU, JAX has an assertion without a message.
        if str(error) and "backend" not in str(error):
            raise
        try:
            jax.devices()
        except (RuntimeError, AssertionError) as cause:
            raise device_error(cause) from error
        raise


def device_error(cause: Exception) -> RunError:
    """Returns the error for devices that JAX could not start, from JAX's own error."""
    if _EXHAUSTED.search(str(cause)):
        return _exhausted(cause, "end other programs that use it, or run fewer at a time")
    variable, platforms = "JAX_PLATFORMS", jax.config.jax_platforms or ""
    if former := os.environ.get("JAX_PLATFORM_NAME"):
        variable, platforms = "JAX_PLATFORM_NAME", former
    named = [name for name in platforms.split(",") if name and name != "cpu"]
    reason = one_line(cause).partition(" (set JAX_PLATFORMS")[0] if str(cause) else "there is none"
    reason = re.sub(r"^Unable to initialize backend '\w+': ", "", reason).rstrip(".")
    kind = UsageError if _LASTING.search(reason) or not str(cause) else RunError
    if not named:
        return kind(
            f"JAX cannot start this machine's devices ({reason}); JAX_PLATFORMS=cpu runs on the CPU"
        )
    unknown = [name for name in named if name not in _NEEDS]
    if unknown and "known backends" in reason:
        return UsageError(
            f"{variable}={platforms}: JAX has no platform {unknown[0]}, nor a plugin for it; "
            f"choose from {', '.join(_NEEDS)}"
        )
    needs = _NEEDS.get(named[0], "its device and its plugin for JAX")
    return kind(
        f"{variable}={platforms}: no such device can be used here ({reason}); it needs {needs}; "
        f"unset {variable} to use what this machine has"
    )


_EXHAUSTED = re.compile("RESOURCE_EXHAUSTED|out.of.memory|ALLOC_FAILED", re.IGNORECASE)


@contextmanager
def explaining_exhausted_memory(advice: str) -> Iterator[None]:
    """Explains the error in one line, if the memory of a device or of this machine is exhausted.

    Args:
      advice: what the user can do about it.

    Raises:
      RunError: in place of JAX's or NumPy's error.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_exhausted(error):
            raise
        raise _exhausted(error, advice) from error


def is_exhausted(error: Exception) -> bool:
    """Returns True for an error of JAX or NumPy that says that memory is exhausted."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and bool(_EXHAUSTED.search(str(error)))
    )


def _exhausted(cause: Exception, advice: str) -> RunError:
    where = "this machine's" if isinstance(cause, MemoryError) else "the device's"
    return RunError(f"{where} memory is exhausted ({one_line(cause).rstrip('.')}); {advice}")


def keep_freed_memory() -> bool:
    """Makes malloc keep freed memory; returns False if the C library does not support this.

    XLA:CPU allocates its buffers for every execution. By default, glibc returns large buffers to
    the system, which zeroes each page when the next execution touches it. The setting applies to
    the whole process, which keeps its peak memory until it exits. Call it before starting threads.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD and M_ARENA_MAX of malloc.h. The last is needed since
    # per-thread arenas still use mmap for more than 64 MB, despite M_MMAP_MAX = 0.
    return all([mallopt(-4, 0), mallopt(-1, 2**31 - 1), mallopt(-2, 2**26), mallopt(-8, 1)])
