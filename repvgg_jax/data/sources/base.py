"""What a data source is: examples by index, encoded (read when asked) or as arrays in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from absl import logging

from repvgg_jax.data.decode.image import CorruptImageError, LazyImage, open_image
from repvgg_jax.errors import UsageError


class Example(NamedTuple):
    """Pixels, uint8 [h, w, 3], and the class they show."""

    image: np.ndarray
    label: int


class Record(NamedTuple):
    """An encoded image, its label, and the file or record they were read from."""

    data: bytes
    label: int
    where: str


@runtime_checkable
class Source(Protocol):
    """Examples by index, 0 <= index < len(source)."""

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A data set in memory.

    Attributes:
      name: of the data set and its split, for messages.
      class_names: one a label.
      images: uint8 [n, h, w, 3].
      labels: int32 [n].
      skipped: the corrupt records left out when it was decoded.
    """

    name: str
    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    skipped: frozenset[str] = frozenset()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], int(self.labels[index]))


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """A data set that stays encoded and is read when asked.

    Attributes:
      name: of the data set and its split, for messages.
      class_names: one a label.
      size: number of examples.
      read: indices -> their records, from any thread.
      label_range: labels must be less; the smaller of what the net and the data set know.
      skip_corrupt: whether the pipeline may leave out what cannot be decoded.
      skipped: the corrupt records met so far.
    """

    name: str
    class_names: tuple[str, ...]
    size: int
    read: Callable[[Sequence[int]], list[Record]]
    label_range: int
    skip_corrupt: bool = False
    skipped: set[str] = dataclasses.field(default_factory=set)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        """Decode one example.

        Raises:
          CorruptImageError: where its image is broken.
          UsageError: where its label is out of range.
        """
        return self._decode(self.read([index])[0], _pixels)

    def decode(
        self, record: Record, transform: Callable[[LazyImage], np.ndarray] | None = None
    ) -> Example | None:
        """Decode a record through `transform`; None where it is corrupt and may be skipped.

        Raises: as `__getitem__`, but a corrupt image only without `skip_corrupt`.
        """
        try:
            return self._decode(record, transform or _pixels)
        except CorruptImageError as error:
            if not self.skip_corrupt:
                raise
            if error.where not in self.skipped:
                self.skipped.add(error.where)
                logging.warning("left out %s, %d so far", error.where, len(self.skipped))
            return None

    def _decode(self, record: Record, transform: Callable[[LazyImage], np.ndarray]) -> Example:
        check_label(record.label, self.label_range, record.where)
        return Example(transform(open_image(record.data, record.where)), record.label)


def _pixels(image: LazyImage) -> np.ndarray:
    return image.rgb()


def check_label(label: int, label_range: int, where: str) -> None:
    """Raise UsageError unless 0 <= label < label_range; `where` names the record."""
    if not 0 <= label < label_range:
        raise UsageError(
            f"label {label} of {where} is outside [0, {label_range}); "
            "set model.num_classes to the data set's number of classes"
        )
