"""A classifier of images, whatever runs it: see `serve/open.py`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repvgg_jax.data.augment.transforms import Transform, eval_image
from repvgg_jax.data.decode.image import LazyImage
from repvgg_jax.errors import UsageError
from repvgg_jax.export.metadata import Metadata

CPU_BATCH = 32  # images; larger batches do not speed CPUs up
DEVICE_BATCH = 256  # images on GPUs and TPUs


@dataclass(frozen=True)
class Model:
    """A classifier of images, with the preprocessing of the evaluation that belongs to it.

    Attributes:
      description: its file or workdir, its form and step, for messages.
      names: name of the class of each output.
      transform: transform of images in evaluation.
      run: function of images, uint8 [n, size, size, 3] with 1 <= n <= `batch_size`, that returns
        the probabilities of their classes, float32 [n, classes].
      batch_size: largest batch that `run` takes.
      compiles: True if `run` compiles a program for each power of two of images, at its first use.
    """

    description: str
    names: tuple[str, ...]
    transform: Transform
    run: Callable[[np.ndarray], np.ndarray]
    batch_size: int = CPU_BATCH
    compiles: bool = False

    def compile(self, most: int) -> None:
        """Compiles the programs for 1 to `most` images."""
        size, most = self.transform.eval_size, min(most, self.batch_size)
        counts = {min(1 << power, most) for power in range(most.bit_length() + 1)}
        for count in sorted(counts) if self.compiles else ():
            self.run(np.zeros((count, size, size, 3), np.uint8))

    def prepare(self, image: LazyImage) -> np.ndarray:
        """Returns an image as `run` takes it: uint8 [size, size, 3].

        Raises:
          CorruptImageError: if the image cannot be decoded.
        """
        return eval_image(image, self.transform)

    def check_top_k(self, top_k: int) -> None:
        """Raises UsageError unless the net has at least `top_k` classes."""
        classes = len(self.names)
        if not 1 <= top_k <= classes:
            raise UsageError(f"--top_k={top_k}: the net has {classes} classes; give 1 to {classes}")


def names_in_file(metadata: Metadata, outputs: int, path: Path) -> tuple[str, ...]:
    """Returns the name of each output of the model in a file; numbers if it has no names.

    Raises:
      UsageError: if there are more or fewer names than outputs.
    """
    if metadata.names is not None and len(metadata.names) < outputs:
        raise _wrong_count(len(metadata.names), outputs, str(path))
    return names_of_outputs(metadata.names, outputs, str(path))


def names_of_outputs(names: Sequence[str] | None, outputs: int, where: str) -> tuple[str, ...]:
    """Returns the name of each output of a run's net; numbers stand for outputs without a class.

    Raises:
      UsageError: if there are more names than outputs.
    """
    known = tuple(map(str, names or ()))
    if len(known) > outputs:
        raise _wrong_count(len(known), outputs, where)
    return (*known, *map(str, range(len(known), outputs)))


def _wrong_count(names: int, outputs: int, where: str) -> UsageError:
    return UsageError(
        f"{where} names {names} classes, but its net has {outputs} outputs; give one name for each"
    )


def eval_transform(metadata: Metadata) -> Transform:
    """Returns the transform of images in evaluation that metadata describe."""
    side = metadata.image_size
    return Transform("resized_crop", side, resize=round(side / metadata.crop_pct))


def file_description(path: Path, metadata: Metadata) -> str:
    """Returns a file's name, and what the model in it is."""
    return f"{path.name}: {metadata.form}, {metadata.model}"
