"""Small data sets on the devices, from which a compiled program gathers and augments its batches.

The host only draws indices, crops and flips. The images are those of `data/pipeline.py`, bit for
bit.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Int32, UInt8

from repvgg_jax.data.augment.pad_crop import draw_crops
from repvgg_jax.data.augment.transforms import Transform, fit
from repvgg_jax.data.decode.image import from_array
from repvgg_jax.data.sampler import stream_indices
from repvgg_jax.data.sources.base import ArraySource
from repvgg_jax.data.split import Split
from repvgg_jax.runtime.devices import cpu_cores, memory_bytes
from repvgg_jax.runtime.mesh import place_batches, replicate
from repvgg_jax.runtime.processes import all_processes, inform_once

# Share of the memory of a device that a data set may take.
_SHARE = 0.25


class TrainingImages(struct.PyTreeNode):
    """A training set, of which every device of a mesh holds all images.

    Attributes:
      images: images of the size of the net's input, with zero padding on each side.
      labels: their labels.
      padding: padding on each side, in pixels.
    """

    images: UInt8[Array, "n padded_size padded_size 3"]
    labels: Int32[Array, "n"]
    padding: int = struct.field(pytree_node=False)


class Draws(NamedTuple):
    """The random choices for the images of a batch, int32 [..., batch].

    Attributes:
      index: index of the image in the data set.
      top: first row of the crop of the padded image.
      left: first column of the crop.
      mirrored: 1 to flip the crop horizontally, or else 0.
    """

    index: Any
    top: Any
    left: Any
    mirrored: Any


def put_training_images(split: Split, mesh: Mesh) -> TrainingImages | None:
    """Puts a training set in memory onto every device of a mesh.

    Returns:
      The images on the devices. None if the set is not in memory, if the host must augment it
      (policies, random erasing, resized crops), or if it does not fit, in which case a line is
      logged.
    """
    source, transform = split.loaded, split.transform
    if not isinstance(source, ArraySource) or not len(source):
        return None
    if transform.augmentation == "resized_crop" or transform.changes_pixels:
        return None
    padding = transform.padding if transform.augmentation == "pad_crop" else 0
    side = transform.image_size + 2 * padding
    if not _fits(len(source) * side * side * 3, "training", mesh):
        return None
    images = _padded(source.images, transform.image_size, padding)
    return TrainingImages(*replicate((images, source.labels), mesh), padding)


def _padded(images: np.ndarray, size: int, padding: int) -> np.ndarray:
    """Returns images of the given size with zero padding on each side, in a single copy."""
    side = size + 2 * padding
    padded = np.zeros((len(images), side, side, 3), np.uint8)
    inner = padded[:, padding : padding + size, padding : padding + size]
    if images.shape[1:3] == (size, size):
        inner[:] = images
        return padded

    def resize(row: int) -> None:
        inner[row] = fit(from_array(images[row]), size)

    with ThreadPoolExecutor(cpu_cores()) as pool:
        deque(pool.map(resize, range(len(images))), maxlen=0)  # raises what a thread raises
    return padded


def draw(
    size: int, transform: Transform, seed: int, augmentation_seed: int, positions: np.ndarray
) -> Draws:
    """Returns the random choices for the images at some positions of the training stream.

    Args:
      size: number of images in the data set.
      transform: transform of the images.
      seed: base seed for shuffling.
      augmentation_seed: base seed for augmentation.
      positions: consecutive positions, int64 [n].
    """
    index = stream_indices(size, seed, int(positions[0]), len(positions))
    if transform.augmentation == "pad_crop":
        crops = draw_crops(transform.padding, transform.flip, augmentation_seed, positions)
    else:
        crops = np.zeros((3, len(positions)))
    return Draws(*(np.asarray(choice, np.int32) for choice in (index, *crops)))


def gather(data: TrainingImages, draws: Draws) -> dict[str, Array]:
    """Returns the batch `image` uint8 [batch, size, size, 3] and `label` int32 [batch]."""
    size = data.images.shape[1] - 2 * data.padding

    def crop(index: Array, top: Array, left: Array) -> Array:
        start = (index, top, left, 0)
        return jax.lax.dynamic_slice(data.images, start, (1, size, size, 3))[0]

    images = jax.vmap(crop)(draws.index, draws.top, draws.left)
    mirrored = draws.mirrored.astype(bool)[:, None, None, None]
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    return {"image": images, "label": data.labels[draws.index]}


def put_eval_batches(split: Split, mesh: Mesh) -> dict[str, Array] | None:
    """Puts the batches of an evaluation split in memory onto a mesh, split over its devices.

    Returns:
      `image`, `label` and `mask` of all batches, [batches, batch, ...]; None if the split is not in
      memory, or if it does not fit, in which case a line is logged.
    """
    source = split.loaded
    if not isinstance(source, ArraySource) or not len(source):
        return None
    size = len(source) * split.transform.eval_size**2 * 3
    if not _fits(size // mesh.size, "evaluation", mesh):
        return None
    batches = list(split.eval_batches())
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    return place_batches(stacked, mesh)


def _fits(size: int, kind: str, mesh: Mesh) -> bool:
    """Returns True if `size` bytes fit each device in all processes; says so if they do not."""
    memory = min(map(memory_bytes, mesh.local_devices))
    if all_processes(size <= _SHARE * memory):
        return True
    inform_once(
        f"the {kind} images take {size / 1e9:.1f} GB, more than {_SHARE:.0%} of the "
        f"{memory / 1e9:.1f} GB of a device; the host sends them batch by batch"
    )
    return False
