"""Rows of the benchmark of GPUs: names of figures and programs, and how they are written."""

import importlib.metadata
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

from experiments.benchmarks.measuring import start_device

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
    """Returns the rows of this package, after starting JAX's devices; raises as `start_device`."""
    return Rows(file, OURS, start_device(platform).device_kind, ("jax", "jaxlib", "flax"))
