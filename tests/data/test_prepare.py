"""Data sets prepared from archives in the official format, read by TFDS and by `load_source`."""

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repvgg_jax.data.prepare.archives import download
from repvgg_jax.data.prepare.official import SETS
from repvgg_jax.data.prepare.prepare import find_prepared, prepare
from repvgg_jax.data.sources.load import load_source
from repvgg_jax.errors import HeldError, UsageError
from tests.support.commands import ROOT
from tests.support.locks import HOLDER
from tests.support.official_archives import (
    CIFAR_NAMES,
    make_cifar,
    make_imagenet,
    make_imagenette,
    stock,
    with_archives,
)


def fails(*parts, **arguments):
    with pytest.raises(UsageError) as error:
        prepare(**arguments)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert os.fspath(part) in message
    return message


def test_archives_are_those_that_tfds_lists():
    import tensorflow_datasets as tfds

    for name, data_set in SETS.items():
        listed = {
            url.rpartition("/")[2]: (int(info.size), f"sha256:{info.checksum}")
            for url, info in tfds.builder_cls(name.partition("/")[0]).url_infos.items()
        }
        for archive in data_set.archives:
            size, checksum = listed[archive.file_name]
            assert archive.size == size
            assert archive.by_hand or archive.checksum == checksum


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name, tmp_path):
    import tensorflow_datasets as tfds

    path, expected = make_cifar(tmp_path / "archives", name)
    data_dir = tmp_path / "data"
    written = prepare(name, data_dir, path.parent, sets=with_archives(name, [path]))
    assert written == data_dir / name / "3.0.2"
    assert set(os.listdir(data_dir)) == {name}
    for split, rows in expected.items():
        records = tfds.data_source(name, data_dir=data_dir, split=split)
        source = load_source("tfds", name, os.fspath(data_dir), split)
        assert len(records) == len(source) == len(rows)
        for index, row in enumerate(rows):
            pixels = row[-3072:].reshape(3, 32, 32).transpose(1, 2, 0)
            record = records[index]
            np.testing.assert_array_equal(record["image"], pixels)
            np.testing.assert_array_equal(source.images[index], pixels)
            assert record["id"].decode() == f"{split}_{index:05d}"
            assert record["label"] == source.labels[index] == row[-3073]
            if name == "cifar100":
                assert record["coarse_label"] == row[0]
    code = tfds.builder_cls(name)(data_dir=tmp_path / "none").info.features
    read = tfds.builder_from_directory(written).info
    assert repr(read.features) == repr(code)
    assert read.features["label"].names == list(CIFAR_NAMES[name].values())[-1]
    assert read.features["label"].names == list(source.class_names)
    assert read.supervised_keys == ("image", "label")


def test_imagenette_keeps_the_bytes_of_its_photographs(tmp_path):
    import tensorflow_datasets as tfds

    name = "imagenette/160px-v2"
    path, images = make_imagenette(tmp_path / "archives")
    sets = with_archives(name, [path])
    written = prepare(name, tmp_path, path.parent, sets=sets, shard_bytes=3000)
    names = tfds.builder(name, data_dir=tmp_path).info.features["label"].names
    for split, folder in {"train": "train", "validation": "val"}.items():
        read = [
            (record["image"], names[record["label"]]) for record in stock(name, tmp_path, split)
        ]
        assert read == [(data, where[1]) for where, data in images.items() if where[0] == folder]
    assert len(list(written.glob("imagenette-train.array_record-*"))) > 3
    source = load_source("tfds", name, os.fspath(tmp_path), "test")
    assert source.class_names == tuple(names)
    assert [source[i].label for i in range(len(source))] == list(range(10))


def test_imagenet_keeps_bytes_names_and_labels(tmp_path):
    import tensorflow_datasets as tfds

    paths, train, validation = make_imagenet(tmp_path / "archives")
    sets = with_archives("imagenet2012", paths)
    prepare("imagenet2012", tmp_path, tmp_path / "archives", sets=sets, shard_bytes=4000)
    builder = tfds.builder("imagenet2012", data_dir=tmp_path)
    code = tfds.builder_cls("imagenet2012")(data_dir=tmp_path / "none").info
    assert repr(builder.info.features) == repr(code.features)
    names = builder.info.features["label"].names
    assert names == code.features["label"].names
    assert builder.info.splits["train"].num_shards > 1
    read = [
        (names[record["label"]], record["file_name"].decode(), record["image"])
        for record in stock("imagenet2012", tmp_path, "train")
    ]
    assert read == [(wnid, *image) for wnid, images in train.items() for image in images]

    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    records = stock("imagenet2012", tmp_path, "validation")
    for record, (file_name, data) in zip(records, validation, strict=True):
        assert record["image"] == data
        assert record["file_name"].decode() == file_name
        assert names[record["label"]] == labels[int(file_name[-8:-5]) - 1]
    source = load_source("tfds", "imagenet2012", os.fspath(tmp_path), "train")
    for index in range(len(source)):  # the CMYK image and the PNG as well
        expected = Image.open(io.BytesIO(read[index][2])).convert("RGB")
        assert np.abs(source[index].image.astype(int) - np.asarray(expected)).max() <= 2


def test_a_draft_of_other_archives_is_started_again(tmp_path):
    path, _ = make_cifar(tmp_path / "a", rows=3)
    draft = tmp_path / "cifar10/3.0.2.incomplete"
    sets = with_archives("cifar10", [path])
    Path(tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/3.0.2").write_text("in the way")  # makes preparation fail at the start
    fails(
        "not a prepared data set",
        name="cifar10",
        data_dir=tmp_path,
        manual_dir=path.parent,
        sets=sets,
    )
    (tmp_path / "cifar10/3.0.2").unlink()
    draft.mkdir()
    (draft / "progress.json").write_text('{"identity": "other", "splits": {"train": {}}}')
    (draft / "train-00007").write_bytes(b"another's")
    written = prepare("cifar10", tmp_path, path.parent, sets=sets)
    assert not list(written.glob("train-*"))
    assert len(stock("cifar10", tmp_path, "train")) == 15


@pytest.mark.system
def test_one_process_at_a_time(tmp_path):
    path, _ = make_cifar(tmp_path / "archives")
    keywords = {"name": "cifar10", "data_dir": tmp_path, "manual_dir": path.parent}
    keywords["sets"] = with_archives("cifar10", [path])
    (tmp_path / "cifar10").mkdir()
    holder = [sys.executable, "-c", HOLDER, str(tmp_path / "cifar10"), "3.0.2.lock"]
    with subprocess.Popen(holder, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=rf"cifar10 is locked by process {process.pid}"):
            prepare(**keywords)
        process.kill()
    assert prepare(**keywords)


def test_truncated_changed_and_missing_archives(tmp_path):
    path, _ = make_cifar(tmp_path / "archives")
    keywords = {"name": "cifar10", "data_dir": tmp_path, "manual_dir": path.parent}
    keywords["sets"] = with_archives("cifar10", [path])
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    fails(path, "truncated", f"{len(data) - 100:,} bytes instead of {len(data):,}", **keywords)
    path.write_bytes(data[:-100] + bytes(100))
    fails(path, "not the published archive", "sha256", **keywords)
    assert not find_prepared("cifar10", tmp_path)
    path.write_bytes(data)
    assert prepare(**keywords)

    where = {"name": "imagenet2012", "data_dir": tmp_path}
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"")
    message = fails("ILSVRC2012_img_train.tar", "https://image-net.org", tmp_path, **where)
    assert "ILSVRC2012_img_val.tar" in message
    assert "val" not in fails("train", manual_dir=tmp_path, **where)
    fails("does not exist", manual_dir=tmp_path / "none", **where)
    assert not (tmp_path / "imagenet2012").exists()


def test_unknown_sets_and_versions(tmp_path):
    fails("cifar10, cifar100", name="mnist", data_dir=tmp_path)
    fails("tfds build mnist --file_format=array_record", name="mnist", data_dir=tmp_path)
    fails("did you mean cifar100?", name="cifar1000", data_dir=tmp_path)
    fails("imagenette/160px-v2", name="imagenette", data_dir=tmp_path)
    fails("version 3.0.2", name="cifar10:3.0.1", data_dir=tmp_path)
    fails("data.data_dir=gs://bucket is a URL", name="cifar10", data_dir="gs://bucket")


def test_folders_that_cannot_be_written_and_full_disks(tmp_path):
    path, _ = make_cifar(tmp_path / "archives")
    keywords = {"name": "cifar10", "manual_dir": path.parent}
    sets = with_archives("cifar10", [path])
    fails(path, "writable folder", data_dir=path / "below", sets=sets, **keywords)
    huge = dataclasses.replace(sets["cifar10"].archives[0], size=1 << 60, file_name="huge")
    with pytest.raises(UsageError, match=r"no space left for .*: needs 1,152,921,504\.6 GB"):
        download(huge, tmp_path)

    stock_split = sets["cifar10"].splits["test"]

    def read(paths, skip):  # at its first image, before the file for it is opened
        (tmp_path / "cifar10/3.0.2.incomplete/test-00000.part").symlink_to("/dev/full")
        yield from stock_split.read(paths, skip)

    splits = sets["cifar10"].splits | {"test": dataclasses.replace(stock_split, read=read)}
    full = {"cifar10": dataclasses.replace(sets["cifar10"], splits=splits)}
    fails("no space left", tmp_path, data_dir=tmp_path, sets=full, **keywords)
    prepare(data_dir=tmp_path, sets=sets, **keywords)
    assert len(stock("cifar10", tmp_path, "train")) == 20
