"""Class probabilities of images, and the preprocessing of the evaluation."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float
from ml_collections import ConfigDict

from repvgg_jax.config.build import make_transform
from repvgg_jax.config.workdir import read_config
from repvgg_jax.data.augment.transforms import eval_image
from repvgg_jax.data.decode.image import LazyImage, from_array, open_image
from repvgg_jax.data.images import normalize
from repvgg_jax.data.sources.listing import missing_target
from repvgg_jax.errors import UsageError, one_line
from repvgg_jax.nets import check_arguments, check_images, check_pair
from repvgg_jax.runtime.devices import cpu_cores
from repvgg_jax.runtime.files import local_path

# Normalized pixels are within a few standard deviations of 0, and raw ones reach 255.
_LARGEST = 20


def preprocess(
    images: Any, run: str | os.PathLike[str] | ConfigDict
) -> Float[Array, "count height width 3"]:
    """Returns images as a run's evaluation feeds them to the net: resized, cropped, normalized.

    The settings are `data.augmentation`, `data.resize`, `data.eval_image_size` (or
    `data.image_size`), `data.mean` and `data.std` of the run's config.

    Args:
      images: paths of image files, or RGB images as uint8 [height, width, 3] of any sizes; a single
        one is a batch of one. All results are in memory: `--mode=predict` streams large folders.
      run: workdir of a run, or a config.

    Raises:
      UsageError: if an image cannot be read, or is not uint8 RGB; if there is no run, or the config
        is incomplete.

    Example:
      >>> from configs import quickstart
      >>> photograph = np.zeros((480, 640, 3), np.uint8)
      >>> preprocess([photograph], quickstart.get_config()).shape
      (1, 8, 8, 3)
    """
    config = run if isinstance(run, ConfigDict) else read_config(run)
    needed = ("augmentation", "image_size", "resize", "padding", "mean", "std")
    if unset := [f"data.{name}" for name in needed if config.data[name] is None]:
        raise UsageError(f"the config leaves {', '.join(unset)} unset; give the workdir of a run")
    transform = make_transform(config)
    with ThreadPoolExecutor(cpu_cores()) as pool:
        rows = list(pool.map(lambda item: eval_image(_open(*item), transform), _each(images)))
    size = transform.eval_size
    batch = np.stack(rows) if rows else np.zeros((0, size, size, 3), np.uint8)
    return normalize(jnp.asarray(batch), config.data.mean, config.data.std)


def _each(images: Any) -> Iterator[tuple[Any, str]]:
    """Yields the images one by one, each with its name for messages."""
    several = isinstance(images, Iterable) and getattr(images, "ndim", 4) == 4
    if isinstance(images, str) or not several:
        images = [images]
    return ((image, f"images[{index}]") for index, image in enumerate(images))


def _open(image: Any, name: str) -> LazyImage:
    if isinstance(image, str | os.PathLike):
        path = local_path(image)
        try:
            return open_image(path.read_bytes(), os.fspath(path))
        except OSError as error:
            cause = missing_target(path) or one_line(error)
            raise UsageError(f"cannot read the image {path}: {cause}") from error
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise UsageError(
            f"{name} is {pixels.dtype} {list(pixels.shape)}; preprocess takes RGB pixels, uint8 "
            "[height, width, 3], or the path of a file"
        )
    return from_array(pixels)


def predict(
    net: nn.Module,
    variables: Any,
    images: Float[Array, "count height width 3"],
    batch_size: int = 256,
) -> Float[np.ndarray, "count classes"]:
    """Returns the probability of each class for each image: the softmax of the net's logits.

    All batches have one shape, to which the last one is padded, so that the net is compiled once.

    Args:
      net: a net in either form; the fused one is faster.
      variables: its variables.
      images: normalized images, as from `preprocess`.
      batch_size: number of images on the device at a time, at most.

    Returns:
      float32 probabilities; `class_names(workdir)` has the names of the classes.

    Raises:
      UsageError: if the images or the variables do not fit the net.

    Example:
      >>> net, variables = load("runs/flowers", fused=True)  # doctest: +SKIP
      >>> images = preprocess(["a.jpg", "b.jpg"], "runs/flowers")  # doctest: +SKIP
      >>> predict(net, variables, images).argmax(-1)  # doctest: +SKIP
      array([3, 0])
    """
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: must be positive")
    check_arguments(net, variables, "rj.predict(net, variables, images)")
    check_pair(variables)
    _check_preprocessed(images, batch_size)
    size = batch_shape(len(images), batch_size)
    rows = [np.zeros((0, net.num_classes), np.float32)]
    for start in range(0, len(images), size):
        batch = np.asarray(images[start : start + size])
        count = len(batch)
        batch = np.pad(batch, [(0, size - count), *[(0, 0)] * (batch.ndim - 1)])
        rows.append(np.asarray(batch_probabilities(net, variables, batch))[:count])
    return np.concatenate(rows)


def _check_preprocessed(images: Any, most: int) -> None:
    """Raises UsageError for paths, and for pixels among the first `most` images."""
    remedy = "preprocess first: rj.predict(net, variables, rj.preprocess(paths, workdir))"
    several = [images] if isinstance(images, str | os.PathLike) else images
    if not isinstance(several, Sequence | np.ndarray):
        check_images(several)
    if any(isinstance(image, str | os.PathLike) for image in several[:1]):
        raise UsageError(f"predict takes arrays, not paths; {remedy}")
    first = np.asarray(images[:most])
    if first.size and jnp.issubdtype(first.dtype, jnp.floating):
        largest = max(first.max(), -first.min())
        if largest > _LARGEST:
            raise UsageError(
                f"images have values up to {largest:g}, but normalized ones are within about 3; "
                f"{remedy}"
            )


def batch_shape(count: int, most: int) -> int:
    """Returns the size of batches for `count` images: a power of two, or `most` if that is smaller.

    Folders of similar sizes thus share compiled programs.
    """
    return min(most, 1 << max(count - 1, 0).bit_length())


@partial(jax.jit, static_argnames=("net", "mean", "std"))
def batch_probabilities(
    net: nn.Module,
    variables: Any,
    images: Array,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Array:
    """Returns the probabilities of a batch, which is normalized first if `mean` is given."""
    if mean is not None:
        images = normalize(images, mean, std)
    return jax.nn.softmax(net.apply(variables, images, train=False))
