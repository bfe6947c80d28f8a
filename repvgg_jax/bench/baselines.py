"""Baselines of `--mode=bench_data`: tuned input pipelines of other libraries.

Each makes uint8 batches with random resized crops, bilinear resizing and random flips.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repvgg_jax.data.augment.rectangles import random_box
from repvgg_jax.data.sampler import example_rng, stream_indices

# A function that yields the given number of batches, made by one worker per core.
Batches = Callable[[int], Iterator[Any]]


@dataclass(frozen=True)
class Images:
    """Paths and labels of JPEGs; also a torch data set of their crops by position in the stream."""

    paths: Sequence[str]
    labels: Sequence[int]
    size: int  # side of the resized crops in pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[np.ndarray, int]:
        from PIL import Image

        index = int(stream_indices(len(self), 0, position, 1)[0])
        with open(self.paths[index], "rb") as file:
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
        rng = example_rng(0, position)
        image = image.crop(random_box(rng, *image.size))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(image), self.labels[index]


def tf_data(images: Images, batch_size: int, cores: int, *, antialias: bool) -> Batches:
    """Returns a tf.data pipeline on `cores` threads that decodes only the crop, with the fast DCT.

    With `antialias`, resizing uses the same filter as this package and PyTorch. TensorFlow's
    cheaper default reads only the four nearest pixels, and the image differs.

    Raises:
      ImportError: if TensorFlow is not installed.
    """
    import tensorflow as tf

    def example(path: Any, label: Any) -> tuple[Any, Any]:
        data = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros((1, 0, 4)),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], extent[:2]], 0)
        crop = tf.io.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_FAST")
        image = tf.image.resize(crop, (images.size, images.size), antialias=antialias)
        image = tf.cast(image + 0.5, tf.uint8)
        return tf.image.random_flip_left_right(image), label

    options = tf.data.Options()
    options.deterministic = False
    options.threading.private_threadpool_size = cores
    options.threading.max_intra_op_parallelism = 1
    with tf.device("/cpu:0"):
        labels = np.asarray(images.labels, np.int32)
        data = tf.data.Dataset.from_tensor_slices((list(images.paths), labels))
        data = data.shuffle(len(images)).repeat().map(example, tf.data.AUTOTUNE)
        data = data.batch(batch_size, drop_remainder=True, num_parallel_calls=tf.data.AUTOTUNE)
        data = data.prefetch(tf.data.AUTOTUNE).with_options(options)
    return lambda count: data.take(count).as_numpy_iterator()


def torch_loader(images: Images, batch_size: int, cores: int) -> Batches:
    """Returns a pipeline of torch's DataLoader and Pillow, with one persistent process per core.

    Raises:
      ImportError: if torch is not installed.
    """
    import torch

    positions: list[int] = []  # positions in the next iteration
    loader = torch.utils.data.DataLoader(
        images,
        batch_size=batch_size,
        sampler=positions,
        num_workers=cores,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )

    def batches(count: int) -> Iterator[Any]:
        positions[:] = range(count * batch_size)
        return iter(loader)

    return batches
