"""Data sets written from archives of the official form, read by stock TFDS and by us."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repvgg_jax.data.prepare.archives import download
from repvgg_jax.data.prepare.official import SETS
from repvgg_jax.data.prepare.prepare import describe, find_prepared, prepare
from repvgg_jax.data.prepare.shards import locked
from repvgg_jax.data.sources.load import load_source
from repvgg_jax.errors import UsageError
from tests.support.official_archives import (
    CIFAR_NAMES,
    make_cifar,
    make_imagenet,
    make_imagenette,
    with_archives,
)

ROOT = Path(__file__).parents[2]


def stock(name, data_dir, split):
    """What stock TFDS makes of it, images as their bytes."""
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    return tfds.data_source(name, data_dir=data_dir, split=split, decoders=decoders)


def content(folder):
    """Everything in a version's folder; records as they are read, as maps have no fixed order."""
    data_dir, name = folder.parent.parent, folder.parent.name
    files = {path.name: path for path in folder.iterdir()}
    shards = {name: path for name, path in files.items() if "array_record" in name}
    splits = {name.partition(".")[0].partition("-")[2] for name in shards}
    texts = {
        name: json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()
        for name, path in files.items()
        if name not in shards
    }
    return sorted(shards), texts, {split: list(stock(name, data_dir, split)) for split in splits}


def fails(*parts, **arguments):
    with pytest.raises(UsageError) as error:
        prepare(**arguments)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert os.fspath(part) in message
    return message


# --- What is written ------------------------------------------------------------------------------


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


def test_nothing_here_imports_tensorflow(tmp_path):
    path, _ = make_cifar(tmp_path / "archives")
    run_script(tmp_path, path, "assert 'tensorflow' not in sys.modules")
    assert find_prepared("cifar10", tmp_path)


# --- Interrupted, and begun again -----------------------------------------------------------------

SCRIPT = """
import sys, time
from pathlib import Path
from tests.official_archives import with_archives
from repvgg_jax.data import shards
from repvgg_jax.data.prepare import prepare

name, data_dir, pause, *paths = sys.argv[1:]
paths = [Path(path) for path in paths]
save = shards.Draft.save
def slow(draft):  # time to be killed in: at every point where something is noted as done
    save(draft)
    time.sleep(float(pause))
shards.Draft.save = slow
prepare(name, data_dir, paths[0].parent, sets=with_archives(name, paths), shard_bytes=2000)
"""


def script(name, data_dir, paths, pause=0.0, then=""):
    return [sys.executable, "-c", SCRIPT + then, name, data_dir, str(pause), *paths]


def run_script(data_dir, path, then):
    command = script("cifar10", data_dir, [path], then=then)
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)


def test_killed_half_way_it_goes_on_and_writes_the_same(tmp_path):
    paths, *_ = make_imagenet(tmp_path / "archives", classes=4, count=6)
    sets = with_archives("imagenet2012", paths)
    whole = prepare(
        "imagenet2012", tmp_path / "whole", paths[0].parent, sets=sets, shard_bytes=2000
    )
    draft = tmp_path / "killed/imagenet2012/5.1.0.incomplete"
    kept = {}
    for shards in (2, 5):
        process = subprocess.Popen(
            script("imagenet2012", tmp_path / "killed", paths, pause=0.3), cwd=ROOT
        )
        until = time.monotonic() + 40
        while len(list(draft.glob("train-?????"))) < shards and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not find_prepared("imagenet2012", tmp_path / "killed", sets=sets)
        with pytest.raises(UsageError, match="no prepared imagenet2012"):
            load_source("tfds", "imagenet2012", os.fspath(tmp_path / "killed"), "train")
        for path, written in kept.items():
            assert path.stat().st_mtime_ns == written, f"{path} was written again"
        # The last may have been written, but not noted yet.
        done = sorted(draft.glob("train-?????"))[:-1]
        kept = {path: path.stat().st_mtime_ns for path in done}
    last = prepare(
        "imagenet2012", tmp_path / "killed", paths[0].parent, sets=sets, shard_bytes=2000
    )
    assert content(last) == content(whole)
    times = {path.stat().st_mtime_ns for path in last.iterdir()}
    assert set(kept.values()) <= times
    assert os.listdir(last.parent) == ["5.1.0"]


def test_a_kill_between_the_names_of_the_shards_is_mended(tmp_path):
    path, _ = make_cifar(tmp_path / "archives")
    sets = with_archives("cifar10", [path])
    keywords = {"manual_dir": path.parent, "sets": sets, "shard_bytes": 9000}
    whole = prepare("cifar10", tmp_path / "whole", **keywords)
    code = SCRIPT.replace(
        "prepare(name,",
        "import os\nrename = os.replace\ndef die(source, target):\n"
        "    rename(source, target)\n"
        "    if 'train.array_record-00001' in str(target): os.kill(os.getpid(), 9)\n"
        "os.replace = die\nprepare(name,",
    ).replace("shard_bytes=2000", "shard_bytes=9000")
    command = [sys.executable, "-c", code, "cifar10", tmp_path / "killed", "0", path]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == -signal.SIGKILL
    assert not find_prepared("cifar10", tmp_path / "killed", sets=sets)
    for stray in ("test-00003.part", ".progress.json.1.tmp"):  # as earlier kills may leave them
        (tmp_path / "killed/cifar10/3.0.2.incomplete" / stray).write_text("half")
    assert content(prepare("cifar10", tmp_path / "killed", **keywords)) == content(whole)


def test_a_draft_of_other_archives_is_begun_anew(tmp_path):
    path, _ = make_cifar(tmp_path / "a", rows=3)
    draft = tmp_path / "cifar10/3.0.2.incomplete"
    sets = with_archives("cifar10", [path])
    Path(tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/3.0.2").write_text("in the way")  # which stops it at the start
    fails(
        "no prepared data set", name="cifar10", data_dir=tmp_path, manual_dir=path.parent, sets=sets
    )
    (tmp_path / "cifar10/3.0.2").unlink()
    draft.mkdir()
    (draft / "progress.json").write_text('{"identity": "other", "splits": {"train": {}}}')
    (draft / "train-00007").write_bytes(b"another's")
    written = prepare("cifar10", tmp_path, path.parent, sets=sets)
    assert not list(written.glob("train-*"))
    assert len(stock("cifar10", tmp_path, "train")) == 15


def test_what_is_prepared_is_left_alone(tmp_path):
    path, _ = make_cifar(tmp_path / "archives")
    keywords = {"data_dir": tmp_path, "manual_dir": path.parent}
    keywords["sets"] = with_archives("cifar10", [path])
    written = prepare("cifar10", **keywords)
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    path.unlink()  # nor are its archives needed any more
    assert prepare("cifar10:3.0.2", **keywords) == written
    assert before == {path: path.stat().st_mtime_ns for path in written.iterdir()}
    assert describe(written) == "train: 20 images in 1 file, test: 4 images in 1 file"
    command = [sys.executable, "main.py", "--mode=prepare", "--config=configs/cifar10.py"]
    done = subprocess.run(
        [*command, f"--config.data.data_dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"cifar10 is already prepared in {written}: train: 20 images" in done.stdout


def test_one_process_at_a_time(tmp_path):
    path, _ = make_cifar(tmp_path / "archives")
    keywords = {"name": "cifar10", "data_dir": tmp_path, "manual_dir": path.parent}
    keywords["sets"] = with_archives("cifar10", [path])
    with locked(tmp_path / "cifar10/3.0.2.lock"):
        fails("another process", **keywords)
    assert prepare(**keywords)


# --- Archives that are not what they should be ----------------------------------------------------


def test_truncated_changed_and_missing_archives(tmp_path):
    path, _ = make_cifar(tmp_path / "archives")
    keywords = {"name": "cifar10", "data_dir": tmp_path, "manual_dir": path.parent}
    keywords["sets"] = with_archives("cifar10", [path])
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    fails(path, "truncated", f"{len(data) - 100:,} of {len(data):,} bytes", **keywords)
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
    fails("no such folder", manual_dir=tmp_path / "none", **where)
    assert not (tmp_path / "imagenet2012").exists()


def test_unknown_sets_and_versions(tmp_path):
    fails("cifar10, cifar100", name="mnist", data_dir=tmp_path)
    fails("did you mean cifar100?", name="cifar1000", data_dir=tmp_path)
    fails("imagenette/160px-v2", name="imagenette", data_dir=tmp_path)
    fails("version 3.0.2", name="cifar10:3.0.1", data_dir=tmp_path)
    fails("local folder", name="cifar10", data_dir="gs://bucket")


def test_folders_that_cannot_be_written_and_full_disks(tmp_path):
    path, _ = make_cifar(tmp_path / "archives")
    keywords = {"name": "cifar10", "manual_dir": path.parent}
    sets = with_archives("cifar10", [path])
    fails(path, "can be written to", data_dir=path / "below", sets=sets, **keywords)
    huge = dataclasses.replace(sets["cifar10"].archives[0], size=1 << 60, file_name="huge")
    with pytest.raises(UsageError, match=r"no space left for .*: 1,152,921,504\.6 GB are needed"):
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
