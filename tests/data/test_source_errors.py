"""Unusable data sets cause a one-line error that names the data set."""

from __future__ import annotations

import os

import numpy as np
import pytest

from repvgg_jax.data.augment.transforms import Transform
from repvgg_jax.data.pipeline import eval_batches
from repvgg_jax.data.sources.load import load_source
from repvgg_jax.errors import UsageError
from tests.support.batches import PLAIN
from tests.support.image_files import (
    encoded,
    noise,
    without_frame_header,
    write,
    write_prepared,
    write_tree,
)
from tests.support.messages import one_line


def fails(*parts, **arguments):
    keywords = {"source": "folder", "name": "x", "data_dir": None, "split": "train"} | arguments
    with pytest.raises(UsageError) as error:
        load_source(**keywords)
    return one_line(error, *parts)


def test_unknown_values_are_refused_with_the_known_ones():
    fails("'pickle'", "digits, tfds, folder", source="pickle")
    fails("'valid'", "train, test", split="valid")
    with pytest.raises(UsageError, match=r"'cutmix'.*resized_crop, pad_crop, none"):
        Transform("cutmix", 8)
    with pytest.raises(UsageError, match="resize=32 is less than the 64 pixels"):
        Transform("resized_crop", 64, resize=32)


def test_missing_folders_are_named(tmp_path):
    fails("data.data_dir")
    fails(tmp_path / "none", data_dir=os.fspath(tmp_path / "none"))
    fails("has no class folders", tmp_path, data_dir=os.fspath(tmp_path))
    write_tree(tmp_path, splits=("train",))
    fails(tmp_path, "val, valid, validation", data_dir=os.fspath(tmp_path), split="test")


def test_a_test_folder_without_a_train_folder_is_an_error(tmp_path):
    write_tree(tmp_path, splits=("val",))
    fails(tmp_path / "val", "no train folder", data_dir=os.fspath(tmp_path))


def test_an_empty_class_folder_is_named(tmp_path):
    write_tree(tmp_path)
    write(tmp_path / "train" / "cow" / "photos" / "0.heic", b"")
    (tmp_path / "val" / "cow").mkdir()
    fails(tmp_path / "train" / "cow", ".jpg", "but 1 .heic", data_dir=os.fspath(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_different_classes_are_listed(tmp_path, split):
    write_tree(tmp_path)
    (tmp_path / "train" / "bee").rename(tmp_path / "train" / "wasp")
    fails(
        "extra [bee]", "lacks [wasp]", tmp_path / "val", data_dir=os.fspath(tmp_path), split=split
    )


def test_labels_beyond_the_net_are_named(tmp_path):
    write_tree(tmp_path)
    source = load_source("folder", "x", os.fspath(tmp_path), "train", num_classes=1)
    with pytest.raises(UsageError, match=r"label 1 of \S+/train/bee/0\.PNG is outside \[0, 1\)"):
        [source[index] for index in range(len(source))]
    fails("label 5", "[0, 5)", source="digits", num_classes=5)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF?",
        encoded(noise(0))[:60],
        encoded(noise(0))[:-70],
        without_frame_header(encoded(noise(0), "JPEG")),
    ],
)
def test_a_broken_image_is_named(tmp_path, data):
    broken = write(tmp_path / "ant" / "x.png", data)
    source = load_source("folder", "x", os.fspath(tmp_path), "train")
    with pytest.raises(UsageError) as error:
        source[0]
    one_line(error, broken)


def test_a_broken_record_is_named_or_left_out_of_memory(tmp_path):
    images = [encoded(noise(i, 8, 8)) for i in range(4)]
    made = write_prepared(tmp_path, [*images, images[0][:50]], [0, 1, 2, 0, 1])
    fails("record ", made, "cannot decode", source="tfds", name="tiny", data_dir=tmp_path)
    source = load_source("tfds", "tiny", os.fspath(tmp_path), "train", skip_corrupt=True)
    assert len(source) == 4
    assert len(source.skipped) == 1
    assert sorted(source.labels) == [0, 0, 1, 2]


def test_record_labels_beyond_the_net_are_named(tmp_path):
    images = [encoded(noise(i, 8, 8)) for i in range(3)]
    made = write_prepared(tmp_path, images, [0, 1, 2])
    where = {"source": "tfds", "name": "tiny", "data_dir": os.fspath(tmp_path)}
    fails("label 2", "record ", made, "[0, 2)", num_classes=2, **where)


def test_streamed_labels_beyond_the_net_surface_from_the_workers(tmp_path):
    images = [encoded(noise(i, 8, 8)) for i in range(3)]
    write_prepared(tmp_path, images, [0, 1, 2], shape=(None, None, 3))
    source = load_source("tfds", "tiny", os.fspath(tmp_path), "train", num_classes=2)
    with pytest.raises(UsageError) as error:
        list(eval_batches(source, PLAIN, 2, workers=2))
    one_line(error, "label 2", "record ", "[0, 2)")


def test_integer_labels_need_the_number_of_classes(tmp_path):
    import tensorflow_datasets as tfds

    scalar = tfds.features.Scalar(np.int64)
    write_prepared(tmp_path, [encoded(noise(0, 8, 8))] * 2, [1, -1], label=scalar)
    where = {"source": "tfds", "name": "tiny", "data_dir": os.fspath(tmp_path)}
    fails("'label'", "ClassLabel", "Scalar", **where)
    fails("label -1", "[0, 2)", num_classes=2, **where)


def test_missing_sets_come_with_the_command_that_prepares_them(tmp_path):
    where = {"source": "tfds", "data_dir": os.fspath(tmp_path)}
    command = "python main.py --mode=prepare --config configs/default.py --config.data.name="
    fails(f"{command}cifar10 --config.data.data_dir={tmp_path}`", name="cifar10", **where)
    fails(tmp_path, f"{command}imagenette/320px-v2", name="imagenette/320px-v2", **where)
    fails(tmp_path, f"{command}mnist", name="mnist", **where)
    fails("'../x'", "name/config", name="../x", **where)
    made = write_prepared(tmp_path, [encoded(noise(0, 8, 8))], [0])
    fails(made, "validation or test", "it has train", name="tiny", split="test", **where)
    made.parent.rename(tmp_path / "small")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "small").rename(tmp_path / "tiny" / "small")
    fails("tiny/small", name="tiny", **where)


def test_other_file_formats_and_lost_files_are_named(tmp_path):
    made = write_prepared(tmp_path, [encoded(noise(0, 8, 8))], [0])
    where = {"source": "tfds", "name": "tiny", "data_dir": os.fspath(tmp_path)}
    info = made / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace('"array_record"', '"tfrecord"'))
    fails(made, "tfrecord", "as array_record", f"--config.data.data_dir={tmp_path}`", **where)
    info.write_text("{")
    fails(info, "cannot be read", "prepare the data set again", **where)
    info.write_text(text)
    (shard,) = made.glob("*.array_record*")
    shard.unlink()
    fails(shard, "missing", **where)


@pytest.mark.parametrize("text", [None, "{", "{}", "[]"])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_unreadable_metadata_is_named(tmp_path, file, text):
    made = write_prepared(tmp_path, [encoded(noise(0, 8, 8))], [0])
    (made / file).unlink()
    if text is not None:
        (made / file).write_text(text)
    # Without dataset_info.json, the message can name only the folder.
    named = tmp_path if (file, text) == ("dataset_info.json", None) else made
    fails(named, source="tfds", name="tiny", data_dir=os.fspath(tmp_path))


@pytest.mark.parametrize("shape", [(8, 8, 3), (None, None, 3)], ids=["in memory", "streamed"])
def test_a_damaged_shard_is_named(tmp_path, shape):
    made = write_prepared(
        tmp_path, [encoded(noise(i, 8, 8)) for i in range(6)], [0] * 6, shape=shape
    )
    (shard,) = made.glob("*.array_record*")
    data = bytearray(shard.read_bytes())
    data[200:300] = bytes(100)  # inside the first chunk of records
    shard.write_bytes(data)
    with pytest.raises(UsageError) as error:
        list(eval_batches(load_source("tfds", "tiny", os.fspath(tmp_path), "train"), PLAIN, 2))
    one_line(error, made, "cannot be read")
