"""The rows of the comparison, in groups whose speeds can be compared with each other."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments.studies.comparison import nets
from experiments.studies.comparison.published import published_size
from experiments.studies.comparison.sizes import Row


class Setup(NamedTuple):
    """The fields that rows share which may be compared with each other."""

    device: str
    dtype: str
    precision: str

    @property
    def number(self) -> str:
        """The compute type, with the precision of products unless it is the default."""
        return self.dtype if self.precision == "default" else f"{self.dtype}, {self.precision}"

    def __str__(self) -> str:
        return f"{self.device}, {self.number}"


class Measured(NamedTuple):
    """The rows of nets of one setup, batch, reference and size, by net, with the counts of all.

    Attributes:
      forward: rows of forward passes of the fused form.
      steps: rows of training steps of the train form.
      counts: rows of counts, by net and image size.
      batch: images per step and forward pass.
      reference: net that the others' speed is divided by.
      image_size: side in pixels of the images of all; None for the published size of each, without
        which published figures are left out.
    """

    forward: Mapping[str, Row]
    steps: Mapping[str, Row]
    counts: Mapping[tuple[str, int], Row]
    batch: int
    reference: str
    image_size: int | None

    @property
    def at_size(self) -> str:
        """The size in words, after the batch; empty for the published sizes."""
        size = self.image_size
        return f", images of {size}x{size} pixels" if size else ""

    @property
    def is_counted(self) -> bool:
        """True if the parameters and operations of all nets are known."""
        rows = [*self.forward.values(), *self.steps.values()]
        return all((row["net"], row["image_size"]) in self.counts for row in rows)

    def speed(self, part: Mapping[str, Row], name: str) -> float | None:
        """Returns a net's speed divided by that of the reference, in the same rounds."""
        return part.get(name, {}).get("speed_of_reference")


def setups(rows: Iterable[Row]) -> list[Setup]:
    """Returns the setups of all rows of times, in their order."""
    timed = (row for row in rows if "device" in row)
    return list(dict.fromkeys(Setup(*(row[name] for name in Setup._fields)) for row in timed))


def of_setup(rows: Iterable[Row], setup: Setup) -> list[Row]:
    """Returns the rows of a setup."""
    return [row for row in rows if all(row.get(k) == v for k, v in setup._asdict().items())]


def measured_nets(rows: Sequence[Row], setup: Setup) -> list[Measured]:
    """Returns the nets of a setup, for each batch, reference and size."""
    counts = {(row["net"], row["image_size"]): row for row in rows if row["part"] == nets.COUNTS}
    timed = [row for row in of_setup(rows, setup) if row["part"] in (nets.FORWARD, nets.STEP)]
    found = []
    for shared in dict.fromkeys(map(_shared, timed)):
        parts: dict[str, dict[str, Row]] = {nets.FORWARD: {}, nets.STEP: {}}
        for row in timed:
            if _shared(row) == shared:
                parts[row["part"]][row["net"]] = row
        found.append(Measured(parts[nets.FORWARD], parts[nets.STEP], counts, *shared))
    return found


def _shared(row: Row) -> tuple[int, str, int | None]:
    """Returns what the rows of a `Measured` share: batch, reference and image size."""
    size = row["image_size"]
    return row["batch"], row["reference"], None if size == published_size(row["net"]) else size
