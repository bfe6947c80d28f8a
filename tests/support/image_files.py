"""Writes images, class folders and prepared data sets for tests."""

from __future__ import annotations

import io
import itertools

import numpy as np
from PIL import Image


def noise(seed, height=12, width=10):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels, kind="PNG"):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_tree(root, splits=("train", "val"), classes=("bee", "ant"), count=3):
    """Writes class folders of noise images, all different."""
    seeds = itertools.count()
    for split in splits:
        for name in classes:
            for i in range(count):
                write(root / split / name / f"{i}.PNG", encoded(noise(next(seeds))))
    return root


def write_photographs(root, classes=4, count=4):
    """Writes class folders of JPEGs that resemble photographs: smooth, large, of many shapes."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        for i in range(count):
            size = tuple(int(n) for n in rng.integers(180, 500, 2))
            coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
            data = encoded(np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)), "JPEG")
            write(root / f"class{label}" / f"{i}.JPEG", data)
    return root


def truncated_jpeg():
    data = encoded(noise(0, 64, 64), "JPEG")
    return data[: len(data) // 2]


def write_prepared(root, images, labels, *, shape=(8, 8, 3), label=None, splits=("train",)):
    """Writes a prepared array_record data set `tiny` without TensorFlow."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=shape)}
    features["label"] = label or tfds.features.ClassLabel(num_classes=3)

    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            """A feature for images given as bytes."""

            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples() for split in splits}

            def _generate_examples(self):
                for i, (image, value) in enumerate(zip(images, labels, strict=True)):
                    yield i, {"image": image, "label": value}

    Tiny(data_dir=root, file_format="array_record").download_and_prepare()
    return root / "tiny" / "1.0.0"
