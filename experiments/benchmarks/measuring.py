"""Compiles programs in threads, and times them so that one that fails does not stop the others."""

import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from experiments.benchmarks.programs import Program
from repvgg_jax.bench.timing import Times, time_interleaved
from repvgg_jax.errors import RunError, one_line
from repvgg_jax.runtime.devices import available_devices, explaining_absent_devices

K = TypeVar("K")


def start_device(platform: str) -> jax.Device:
    """Starts JAX's devices, and returns the first.

    Raises:
      RunError: if JAX has started the CPU instead of the platform.
    """
    with explaining_absent_devices():
        device = available_devices()[0]
    if device.platform == "cpu" != platform:
        raise RunError(
            f"JAX cannot use this machine's {platform} device: it needs a driver, and a plugin "
            'such as that of pip install -U "jax[cuda13]"'
        )
    return device


def compile_all(
    makers: Mapping[K, Callable[[], Program]], threads: int = 8
) -> tuple[dict[K, Program], dict[K, str]]:
    """Returns the programs, compiled in threads, and one line for each that could not be compiled.

    None should be measured meanwhile: XLA runs kernels on the device to choose among them.
    """
    programs, errors = {}, {}
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        futures = {key: pool.submit(make) for key, make in makers.items()}
    for key, future in futures.items():
        try:
            programs[key] = future.result()
        except Exception as error:
            errors[key] = as_one_line(error)
    return programs, errors


def time_together(
    runs: Mapping[str, Callable[[], Any]], rounds: int
) -> tuple[Times, dict[str, str]]:
    """Returns `time_interleaved` of the functions, and one line for each that failed."""
    guarded = {name: Guarded(run) for name, run in runs.items()}
    times = time_interleaved({name: run.run for name, run in guarded.items()}, rounds)
    errors = {name: run.error for name, run in guarded.items() if run.error}
    return {name: times[name] for name in times if name not in errors}, errors


class Guarded:
    """A function that may fail, for example by running out of memory, without ending the others.

    After a failure, `run` does nothing.

    Attributes:
      error: the exception as one line; None before a failure.
    """

    def __init__(self, run: Callable[[], Any]):
        self._run: Callable[[], Any] | None = run
        self.error: str | None = None

    def run(self) -> Any:
        """Calls the function, and returns its result once it is computed."""
        if self._run is None:
            return None
        try:
            return jax.block_until_ready(self._run())
        except Exception as error:
            self._run = None  # frees its memory
            self.error = as_one_line(error)
            return None


def as_one_line(error: Exception) -> str:
    """Returns an exception as one line; prints the traceback of one that is not expected."""
    if isinstance(error, RunError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {one_line(error)}"
