"""The two kinds of data sources: decoded images in memory, and encoded images read on demand."""

import dataclasses
from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple, Self

import numpy as np
from absl import logging

from repvgg_jax.data.decode.image import CorruptImageError, LazyImage, open_image
from repvgg_jax.errors import UsageError


class Example(NamedTuple):
    """An image, uint8 [height, width, 3], and its label."""

    image: np.ndarray
    label: int


class Record(NamedTuple):
    """An encoded image, its label, and the name of its file or record for messages.

    Attributes:
      unreadable: the reason why the file could not be read; empty if it was.
    """

    data: bytes
    label: int
    where: str
    unreadable: str = ""

    def open(self) -> LazyImage:
        """Returns the image, of which only the header has been read.

        Raises:
          CorruptImageError: if it cannot be read or opened.
        """
        if self.unreadable:
            raise CorruptImageError(self.where, self.unreadable)
        return open_image(self.data, self.where)


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A data source of decoded images in memory.

    Attributes:
      name: name of the data set and its split, for messages.
      class_names: name of the class of each label.
      images: uint8 [n, height, width, 3].
      labels: int32 [n].
      skipped: names of corrupt records that were omitted.
      version: version of the data set; empty if it has none.
    """

    name: str
    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    skipped: frozenset[str] = frozenset()
    version: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        _, height, width, _ = self.images.shape
        return height, width

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], int(self.labels[index]))

    def select(self, indices: Sequence[int]) -> Self:
        """Returns a source of the examples at the given indices."""
        images, labels = self.images[list(indices)], self.labels[list(indices)]
        return dataclasses.replace(self, images=images, labels=labels)


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """A data source that reads encoded images on demand.

    Attributes:
      name: name of the data set and its split, for messages.
      class_names: name of the class of each label.
      size: number of examples.
      read: thread-safe function from indices to records.
      label_range: exclusive upper bound of labels, the smaller number of classes of net and data.
      skip_corrupt: whether the pipeline may omit images that cannot be decoded.
      version: version of the data set; empty if it has none.
      image_size: height and width of all images in pixels; None if unknown or different.
      skipped: names of corrupt records found so far.
    """

    name: str
    class_names: tuple[str, ...]
    size: int
    read: Callable[[Sequence[int]], list[Record]]
    label_range: int
    skip_corrupt: bool = False
    version: str = ""
    image_size: tuple[int, int] | None = None
    skipped: set[str] = dataclasses.field(default_factory=set)
    _skipping: Lock = dataclasses.field(default_factory=Lock, repr=False, compare=False)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one example.

        Raises:
          CorruptImageError: if the image cannot be decoded.
          UsageError: if the label is out of range.
        """
        return self._decode(self.read([index])[0], LazyImage.rgb)

    def select(self, indices: Sequence[int]) -> Self:
        """Returns a source of the examples at the given indices."""

        def read(chosen: Sequence[int]) -> list[Record]:
            return self.read([indices[i] for i in chosen])

        return dataclasses.replace(self, size=len(indices), read=read)

    def decode(
        self, record: Record, transform: Callable[[LazyImage], np.ndarray] = LazyImage.rgb
    ) -> Example | None:
        """Decodes a record and applies `transform`; returns None for a skipped corrupt image.

        Raises:
          CorruptImageError: if the image cannot be decoded and `skip_corrupt` is False.
          UsageError: if the label is out of range.
        """
        try:
            return self._decode(record, transform)
        except CorruptImageError as error:
            if not self.skip_corrupt:
                raise
            with self._skipping:  # images are decoded by several threads
                if error.where not in self.skipped:
                    self.skipped.add(error.where)
                    count = len(self.skipped)
                    logging.warning(
                        "skipped the image %s (%d so far): %s", error.where, count, error.cause
                    )
            return None

    def _decode(self, record: Record, transform: Callable[[LazyImage], np.ndarray]) -> Example:
        check_label(record.label, self.label_range, record.where)
        return Example(transform(record.open()), record.label)


Source = ArraySource | EncodedSource


def check_label(label: int, label_range: int, where: str) -> None:
    """Raises UsageError unless 0 <= label < label_range; `where` is the record for the message."""
    if not 0 <= label < label_range:
        raise UsageError(
            f"label {label} of {where} is outside [0, {label_range}); "
            "set model.num_classes to the data set's number of classes"
        )
