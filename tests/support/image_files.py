"""Writes images, class folders and prepared data sets for tests."""

from __future__ import annotations

import io
import itertools
import struct

import numpy as np
from PIL import Image


def noise(seed, height=12, width=10):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels, kind="PNG", **options):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


def tiff(levels, bits=16, photometric=1):
    """Encodes gray [height, width] or RGB [height, width, 3] levels; 12 bits are packed."""
    height, width, channels = (*levels.shape, 1)[:3]
    if bits == 12:
        first, second = levels.astype(np.uint16).reshape(-1, 2).T
        split = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
        pixels = np.stack(split, 1).astype(np.uint8).tobytes()
    else:
        pixels = levels.tobytes()
    sample_format = {"u": 1, "i": 2, "f": 3}[levels.dtype.kind]
    extra = 8 + len(pixels)  # of the three values that do not fit into their entry
    tags = [(256, width), (257, height), (258, bits if channels == 1 else extra), (259, 1)]
    tags += [(262, photometric), (273, 8), (277, channels), (278, height), (279, len(pixels))]
    tags += [(339, sample_format)]
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag == 258 else 4, channels if tag == 258 else 1, value)
        for tag, value in tags
    )
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    head = struct.pack("<2sHI", b"II", 42, extra + 6)
    return head + pixels + struct.pack("<3H", bits, bits, bits) + directory


def without_frame_header(data):
    """Removes the baseline frame header (FF C0, length, ...) of a JPEG."""
    start = data.index(b"\xff\xc0")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


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
