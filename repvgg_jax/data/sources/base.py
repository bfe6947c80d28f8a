"""The two kinds of data source: encoded examples that are read on demand, and arrays in memory."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
from absl import logging

from repvgg_jax.data.decode.image import CorruptImageError, LazyImage, open_image
from repvgg_jax.errors import UsageError


class Example(NamedTuple):
    """Pixels, uint8 [height, width, 3], and their class."""

    image: np.ndarray
    label: int


class Record(NamedTuple):
    """An encoded image, its label, and the name of the file or record for messages."""

    data: bytes
    label: int
    where: str


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A data source that holds decoded images in memory.

    Attributes:
      name: name of the data set and its split, for messages.
      class_names: name of each label.
      images: uint8 [n, height, width, 3].
      labels: int32 [n].
      skipped: corrupt records that were left out while decoding.
    """

    name: str
    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    skipped: frozenset[str] = frozenset()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], int(self.labels[index]))

    def select(self, indices: Sequence[int]) -> Self:
        """Returns the source of the examples at these indices."""
        images, labels = self.images[list(indices)], self.labels[list(indices)]
        return dataclasses.replace(self, images=images, labels=labels)


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """A data source that reads encoded images on demand.

    Attributes:
      name: name of the data set and its split, for messages.
      class_names: name of each label.
      size: number of examples.
      read: function from indices to their records, callable from any thread.
      label_range: upper bound of labels: the smaller of the net's and the data set's class count.
      skip_corrupt: whether the pipeline may leave out images that cannot be decoded.
      skipped: corrupt records found so far.
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
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one example.

        Raises:
          CorruptImageError: if its image cannot be decoded.
          UsageError: if its label is out of range.
        """
        return self._decode(self.read([index])[0], LazyImage.rgb)

    def select(self, indices: Sequence[int]) -> Self:
        """Returns the source of the examples at these indices."""

        def read(chosen: Sequence[int]) -> list[Record]:
            return self.read([indices[i] for i in chosen])

        return dataclasses.replace(self, size=len(indices), read=read)

    def decode(
        self, record: Record, transform: Callable[[LazyImage], np.ndarray] = LazyImage.rgb
    ) -> Example | None:
        """Decodes a record through `transform`; returns None for a corrupt image to be skipped.

        Raises:
          CorruptImageError: if its image cannot be decoded and `skip_corrupt` is False.
          UsageError: if its label is out of range.
        """
        try:
            return self._decode(record, transform)
        except CorruptImageError as error:
            if not self.skip_corrupt:
                raise
            if error.where not in self.skipped:
                self.skipped.add(error.where)
                count = len(self.skipped)
                logging.warning("skipped the corrupt image %s, %d so far", error.where, count)
            return None

    def _decode(self, record: Record, transform: Callable[[LazyImage], np.ndarray]) -> Example:
        check_label(record.label, self.label_range, record.where)
        return Example(transform(open_image(record.data, record.where)), record.label)


Source = ArraySource | EncodedSource


def check_label(label: int, label_range: int, where: str) -> None:
    """Raises UsageError unless 0 <= label < label_range; `where` names the record."""
    if not 0 <= label < label_range:
        raise UsageError(
            f"label {label} of {where} is outside [0, {label_range}); "
            "set model.num_classes to the data set's number of classes"
        )
