"""A split of a data set with the settings of its batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import jax

from repvgg_jax.data.augment.transforms import Transform
from repvgg_jax.data.decode.image import CorruptImageError
from repvgg_jax.data.pipeline import Batch, eval_batches, train_batches
from repvgg_jax.data.sources.base import EncodedSource, Source
from repvgg_jax.data.sources.load import in_memory_if_small
from repvgg_jax.errors import UsageError, shortened

_OPENED_FIRST = 2000  # images; the files of more would take too long to read
_NAMED = 3  # corrupt images, in the error


@dataclass(frozen=True)
class Split:
    """A split of a data set and the settings of its batches, named as in the config."""

    source: Source
    transform: Transform
    batch_size: int
    workers: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @cached_property
    def loaded(self) -> Source:
        """The source, decoded into memory at the first access if it is small.

        Of a source that stays encoded, up to 2,000 images are opened, so that files that are not
        images, and truncated JPEGs, are found before training.

        Raises:
          UsageError: if images are found to be corrupt or have labels out of range.
        """
        source = in_memory_if_small(self.source)
        encoded = isinstance(source, EncodedSource) and not source.skip_corrupt
        if encoded and len(source) <= _OPENED_FIRST:
            _open_all(source)
        return source

    def eval_batches(self) -> Iterator[Batch]:
        """Returns this process's rows of evaluation batches, with every example once."""
        return eval_batches(
            self.loaded,
            self.transform,
            self.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.workers,
        )

    def train_batches(
        self, seed: int, augmentation_seed: int, start_step: int = 0
    ) -> Iterator[Batch]:
        """Returns this process's rows of the infinite training batches from `start_step` on."""
        return train_batches(
            self.loaded,
            self.transform,
            self.batch_size,
            seed,
            start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.workers,
            augmentation_seed=augmentation_seed,
        )


def _open_all(source: EncodedSource) -> None:
    """Raises an error that names the images that cannot be opened, if there are any."""
    corrupt = []
    for index in range(len(source)):
        (record,) = source.read([index])
        try:
            record.open()
        except CorruptImageError as error:
            corrupt.append(error)
    if len(corrupt) == 1:
        raise corrupt[0]
    if corrupt:
        causes = [f"{error.where} ({error.cause})" for error in corrupt]
        raise UsageError(
            f"cannot decode {len(corrupt)} of {len(source)} images: {shortened(causes, _NAMED)}; "
            "replace or delete them, or set data.skip_corrupt=True to skip such images"
        )
