"""The sizes of the comparison, and the rows that have been measured already."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import jax

from experiments.benchmarks.flags import flag_field, shape_of
from experiments.benchmarks.measuring import start_device
from experiments.studies.comparison.published import REFERENCE, TABLES_4_AND_5, published_size
from experiments.sweeps.rows import device_name
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.devices import cpu_cores

Row = Mapping[str, Any]
# The fields by which a row is found again, if it has them.
_KEY = ("part", "net", "image_size", "batch", "case", "shape", "reference")
_KEY += ("dtype", "precision", "device")
# The fields with a speed divided by another's; None if the other could not be measured.
_RATIOS = ("speed_of_reference", "speed_of_first")


# Defaults on a CPU, where those of `Sizes`, which suit a GPU, take hours.
ON_A_CPU = {"batch": 8, "layers": "8x56", "kernels": "4x56x256", "dtype": "float32"}


def _size(name: str, default: Any, text: str) -> Any:
    """Returns the field `name`, which has another default on a CPU."""
    return flag_field(default, text, f"{default}, or {ON_A_CPU[name]} on a CPU,")


@dataclass(frozen=True)
class Sizes:
    """Holds what is measured and where; the command has a flag for each field with a help text."""

    platform: str = "cpu"  # as from `devices_here`
    output: str = ""  # file of the rows
    nets: str = flag_field(
        ",".join(TABLES_4_AND_5), "names of nets, with commas between them", "those of the tables"
    )
    reference: str = flag_field(REFERENCE, "net that the others' speed is divided by")
    batch: int = _size("batch", 128, "images per step and forward pass of a net")
    image_size: int = flag_field(
        0, "side of the images in pixels; 0 for the published size of each net"
    )
    layers: str = _size("layers", "128x56", "batch x side of the guidelines' experiments")
    kernels: str = _size("kernels", "32x56x2048", "batch x side x channels of each convolution")
    dtype: str = _size("dtype", "bfloat16", "compute type, bfloat16 or float32")
    precision: str = flag_field(
        "default", "JAX's matmul precision; the default of float32 on a GPU is TF32, highest is not"
    )
    rounds: int = flag_field(10, "measured runs of each program")
    together: int = flag_field(4, "nets that are compiled at once, and then measured interleaved")

    def names(self) -> list[str]:
        """Returns the names of the nets, each once."""
        return list(dict.fromkeys(filter(None, self.nets.split(","))))

    def size_of(self, net: str) -> int:
        """Returns the side in pixels of a net's images."""
        return self.image_size or published_size(net)

    def setup(self) -> dict[str, Any]:
        """Returns the fields of all rows of times."""
        return {"dtype": self.dtype, "precision": self.precision}

    def check(self) -> None:
        """Raises UsageError for values that no part can be measured with."""
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, int) and value < (name != "image_size"):
                raise UsageError(f"--{name}={value}: must be positive")
        for name, count in (("layers", 2), ("kernels", 3)):
            shape_of(getattr(self, name), count, f"--{name}")
        if self.dtype not in ("bfloat16", "float32"):
            raise UsageError(f"--dtype={self.dtype}: choose from bfloat16, float32")
        if self.precision not in (choices := ("default", "high", "highest")):
            raise UsageError(f"--precision={self.precision}: choose from {', '.join(choices)}")


@dataclass(frozen=True)
class Rows:
    """The rows of a part, written to a file as they come; those measured before are known.

    A row without the ratio of its speed to another's is not known, so that it is measured again.
    """

    file: TextIO
    part: str
    about: Mapping[str, Any]  # device, setup and versions
    known: frozenset[Any]

    def missing(self, **fields: Any) -> bool:
        """Returns True if there is no row yet with these fields."""
        return key({"part": self.part, **self.about, **fields}) not in self.known

    def add(self, **values: Any) -> None:
        """Writes a row; one with `error` for what could not be measured."""
        print(json.dumps({**values, **self.about}), file=self.file, flush=True)


def open_rows(part: str, sizes: Sizes, file: TextIO, *, timed: bool = True) -> Rows:
    """Returns the rows of a part.

    Args:
      part: name of the part.
      sizes: its sizes.
      file: file to which rows are written.
      timed: whether the rows depend on the device, which is started then.
    """
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    about: dict[str, Any] = {"versions": versions}
    if timed:
        if sizes.precision != "default":
            jax.config.update("jax_default_matmul_precision", sizes.precision)
        device = start_device(sizes.platform).device_kind
        about |= sizes.setup() | {"device": device_name(device, cpu_cores())}
    complete = filter(_has_ratios, read_rows(Path(sizes.output)))
    return Rows(file, part, about, frozenset(map(key, complete)))


def _has_ratios(row: Row) -> bool:
    return not any(name in row and row[name] is None for name in _RATIOS)


def key(row: Row) -> tuple[Any, ...]:
    """Returns the fields that distinguish what was measured."""
    return tuple(row.get(name) for name in _KEY)


def read_rows(path: Path) -> list[Row]:
    """Returns the rows of a file, the last one of each key; none if the file is missing.

    An incomplete line, left by a killed process, is skipped.
    """
    rows: dict[Any, Row] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[key(row)] = row
    return list(rows.values())
