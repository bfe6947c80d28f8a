"""Data sources: the bundled digits, class folders, prepared data sets."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from repvgg_jax.data.augment.transforms import Transform
from repvgg_jax.data.pipeline import eval_batches, train_batches
from repvgg_jax.data.sources import load as load_module
from repvgg_jax.data.sources.base import ArraySource, Source
from repvgg_jax.data.sources.load import load_source
from repvgg_jax.errors import UsageError
from tests.support.batches import AUGMENTED, take
from tests.support.image_files import encoded, noise, write, write_prepared, write_tree


def test_digits():
    train, test = (load_source("digits", "digits", None, split) for split in ("train", "test"))
    assert isinstance(train, Source)
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    assert train.images.shape[1:] == (8, 8, 3)
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert set(test.labels) == set(range(10))
    from sklearn import datasets

    bunch = datasets.load_digits()
    np.testing.assert_array_equal(test.labels, bunch.target[::5])
    np.testing.assert_allclose(test.images[..., 0], bunch.images[::5] * 255 / 16, atol=0.5)
    batch = next(train_batches(train, Transform("pad_crop", 8, padding=1, flip=False), 16, 0))
    assert batch["image"].shape == (16, 8, 8, 3)
    larger = next(eval_batches(test, Transform("none", 12), 16))
    assert larger["image"].shape == (16, 12, 12, 3)


def test_folder_labels_are_ranks_of_sorted_names(folder):
    assert isinstance(folder, Source)
    assert folder.class_names == ("ant", "bee")
    assert [folder[i].label for i in range(len(folder))] == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(folder[0].image, noise(3))  # bee was written first


def test_a_folder_without_splits_serves_both_with_a_warning(tmp_path, caplog):
    write_tree(tmp_path, splits=("",))
    with caplog.at_level(logging.WARNING):
        sources = [load_source("folder", "x", os.fspath(tmp_path), s) for s in ("train", "test")]
    assert [len(source) for source in sources] == [6, 6]
    assert "the same images" in caplog.text


def test_val_is_preferred_to_test_which_may_hold_images_without_classes(tmp_path):
    write_tree(tmp_path)
    write(tmp_path / "test" / "0.png", encoded(noise(0)))  # ImageNet as Kaggle packs it
    for split, folder in (("train", "train"), ("test", "val")):
        source = load_source("folder", "x", os.fspath(tmp_path), split)
        assert source.name.endswith(os.fspath(tmp_path / folder))
        assert len(source) == 6


def test_prepared_set_of_one_size_is_in_memory(tmp_path):
    images = [noise(i, 8, 8) for i in range(7)]
    labels = [i % 3 for i in range(7)]
    write_prepared(tmp_path, [encoded(x) for x in images], labels, splits=("train", "validation"))
    source = load_source("tfds", "tiny", os.fspath(tmp_path), "test")
    assert isinstance(source, ArraySource)
    assert "validation" in source.name
    assert source.class_names == ("0", "1", "2")
    by_content = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    read = {image.tobytes(): int(y) for image, y in zip(source.images, source.labels, strict=True)}
    assert read == by_content


def test_prepared_set_of_many_sizes_streams_and_takes_the_newest_version(tmp_path, monkeypatch):
    images = [noise(i, 8 + i, 9) for i in range(5)]
    made = write_prepared(
        tmp_path, [encoded(x) for x in images], [0, 1, 2, 0, 1], shape=(None, None, 3)
    )
    shutil.copytree(made, made.with_name("0.9.0"))
    made.rename(made.with_name("0.10.0"))
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path))
    source = load_source("tfds", "tiny", None, "train")
    assert "0.10.0" in source.name
    assert "0.9.0" in load_source("tfds", "tiny:0.9.0", None, "train").name
    sizes = {source[i].image.shape for i in range(len(source))}
    assert sizes == {image.shape for image in images}
    batches = take(train_batches(source, AUGMENTED[1], 5, 0, workers=2), 2)
    assert sorted(batches[0]["label"]) == sorted(batches[1]["label"]) == [0, 0, 1, 1, 2]
    with pytest.raises(UsageError, match=r"no version 2\.0\.0; it has 0\.9\.0, 0\.10\.0"):
        load_source("tfds", "tiny:2.0.0", None, "train")


def test_array_record_beside_another_format_is_read(tmp_path):
    made = write_prepared(tmp_path, [encoded(noise(i, 8, 8)) for i in range(3)], [0, 1, 2])
    info = made / "dataset_info.json"
    formats = {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    info.write_text(json.dumps(json.loads(info.read_text()) | formats))
    source = load_source("tfds", "tiny", os.fspath(tmp_path), "train")
    assert sorted(source.labels) == [0, 1, 2]


def test_photographs(photographs):
    source = load_source("folder", "photographs", os.fspath(photographs), "train", num_classes=4)
    batch = next(train_batches(source, Transform("resized_crop", 224), 16, 0, workers=2))
    assert batch["image"].shape == (16, 224, 224, 3)
    # Images are neither noise nor padding: neighbors are similar, levels vary.
    assert np.abs(np.diff(batch["image"].astype(int), axis=2)).mean() < 25
    assert (batch["image"].std((1, 2, 3)) > 5).all()


def test_evaluation_of_a_photograph_equals_pillows(photographs):
    source = load_source("folder", "photographs", os.fspath(photographs), "test")
    batch = next(eval_batches(source, Transform("resized_crop", 224), 16, workers=1))
    files = sorted(photographs.glob("*/*"))
    assert len(files) == 16
    for row, file in enumerate(files):
        image = Image.open(file).convert("RGB")
        width, height = image.size
        scale = min(width, height)
        size = int(256 * width / scale), int(256 * height / scale)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
        expected = np.asarray(image.crop((left, top, left + 224, top + 224)))
        np.testing.assert_array_equal(batch["image"][row], expected)


@pytest.mark.system
def test_nothing_here_imports_tensorflow(tmp_path):
    write_prepared(tmp_path, [encoded(noise(0, 8, 8))], [1])
    code = (
        "import sys\n"
        "from repvgg_jax.data.augment.transforms import Transform\n"
        "from repvgg_jax.data.pipeline import train_batches\n"
        "from repvgg_jax.data.sources.load import load_source\n"
        "slow = {'grain', 'tensorflow_datasets', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "source = load_source('tfds', 'tiny', sys.argv[1], 'train')\n"
        "next(train_batches(source, Transform('pad_crop', 8), 1, 0))\n"
        "assert 'tensorflow' not in sys.modules\n"
        "assert not slow, slow\n"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_large_set_streams(tmp_path, monkeypatch):
    write_prepared(tmp_path, [encoded(noise(i, 8, 8)) for i in range(3)], [0, 1, 2])
    monkeypatch.setattr(load_module, "IN_MEMORY_BYTES", 100)
    source = load_source("tfds", "tiny", os.fspath(tmp_path), "train")
    assert not isinstance(source, ArraySource)
    assert len(source) == 3
