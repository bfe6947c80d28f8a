"""Rows of the benchmark of GPUs: names of figures and programs, and how they are written."""

import importlib.metadata
import json
import statistics
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

import jax

from repvgg_jax.errors import RunError, one_line
from repvgg_jax.runtime.devices import explaining_absent_devices

# Programs that are compared: the columns of the table.
OURS, EAGER, COMPILED = "repvgg_jax", "PyTorch, eager", "PyTorch, `torch.compile`"

STEP = "training step, three branches"
MOMENTS = "training step, three branches by moments"
PLAIN_STEP = "training step, plain net"
FUSED = "forward, fused form"
PREPARED = "forward, fused form, prepared weights"
TRAIN_FORM = "forward, train form in evaluation mode"
PRODUCT = "matrix product"
COPY = "copy"
TRAINING = "training"


class Figure(NamedTuple):
    """A measured quantity.

    Attributes:
      name: one of the names above.
      batch: number of images; None for products and copies.
    """

    name: str
    batch: int | None = None

    def __str__(self) -> str:
        return self.name if self.batch is None else f"{self.name}, batch {self.batch}"


@dataclass(frozen=True)
class Rows:
    """The rows of one program, written to a file as they come.

    Attributes:
      file: file of the rows, one JSON object per line.
      program: name of the program.
      device: name of the device.
      packages: distributions whose versions each row has.
    """

    file: TextIO
    program: str
    device: str
    packages: Sequence[str]

    def add(self, figure: Figure, **values: Any) -> None:
        """Writes a row with the given values."""
        versions = {name: importlib.metadata.version(name) for name in self.packages}
        row = {"figure": figure.name, "batch": figure.batch, "program": self.program, **values}
        row |= {"device": self.device, "versions": versions}
        print(json.dumps(row), file=self.file, flush=True)

    def add_times(self, figure: Figure, seconds: Sequence[float], **values: Any) -> None:
        """Writes a row of a program that was run several times."""
        median = statistics.median(seconds)
        rate = {} if figure.batch is None else {"images_per_second": figure.batch / median}
        times = {"milliseconds": 1e3 * median, "fastest": 1e3 * min(seconds), "runs": len(seconds)}
        self.add(figure, **times, **rate, **values)

    def add_error(self, figure: Figure, error: str) -> None:
        """Writes a row of a figure that could not be measured."""
        self.add(figure, error=error)


def our_rows(platform: str, file: TextIO) -> Rows:
    """Returns the rows of this package, after starting JAX's devices.

    Raises:
      RunError: if JAX has started the CPU instead of the platform.
    """
    with explaining_absent_devices():
        device = jax.devices()[0]
    if device.platform == "cpu" != platform:
        raise RunError(
            f"JAX cannot use this machine's {platform} device: it needs a driver, and a plugin "
            'such as that of pip install -U "jax[cuda13]"'
        )
    return Rows(file, OURS, device.device_kind, ("jax", "jaxlib", "flax"))


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
            self.error = described(error)
            return None


def described(error: Exception) -> str:
    """Returns an exception as one line; prints the traceback of one that is not expected."""
    if isinstance(error, RunError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {one_line(error)}"
