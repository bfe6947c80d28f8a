"""Tests of `--mode=prepare` in a process: killed, resumed, and without TensorFlow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repvgg_jax.data.prepare.prepare import describe_splits, find_prepared, prepare
from repvgg_jax.data.sources.load import load_source
from repvgg_jax.errors import UsageError
from tests.support.official_archives import (
    make_cifar,
    make_imagenet,
    stock,
    with_archives,
)

ROOT = Path(__file__).parents[2]


def content(folder):
    """Returns the content of a version's folder; records are parsed, since maps are unordered."""
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


def test_nothing_here_imports_tensorflow(tmp_path):
    path, _ = make_cifar(tmp_path / "archives")
    run_script(tmp_path, path, "assert 'tensorflow' not in sys.modules")
    assert find_prepared("cifar10", tmp_path)


SCRIPT = """
import sys, time
from pathlib import Path
from tests.support.official_archives import with_archives
from repvgg_jax.data.prepare import shards
from repvgg_jax.data.prepare.prepare import prepare

name, data_dir, pause, *paths = sys.argv[1:]
paths = [Path(path) for path in paths]
save = shards.Draft.save
def slow(draft):  # leaves time for a kill whenever progress is recorded
    save(draft)
    time.sleep(float(pause))
shards.Draft.save = slow
prepare(name, data_dir, paths[0].parent, sets=with_archives(name, paths), shard_bytes=2000)
"""


def script(name, data_dir, paths, pause=0.0, then=""):
    return [sys.executable, "-c", SCRIPT + then, name, data_dir, str(pause), *paths]


def run_script(data_dir, path, then):
    command = script("cifar10", data_dir, [path], then=then)
    subprocess.run(command, cwd=ROOT, check=True, timeout=180)


def test_a_killed_process_resumes_and_writes_the_same(tmp_path):
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
        until = time.monotonic() + 180
        while len(list(draft.glob("train-?????"))) < shards:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not find_prepared("imagenet2012", tmp_path / "killed", sets=sets)
        with pytest.raises(UsageError, match="imagenet2012 is not prepared"):
            load_source("tfds", "imagenet2012", os.fspath(tmp_path / "killed"), "train")
        for path, written in kept.items():
            assert path.stat().st_mtime_ns == written, f"{path} was written again"
        # The last one may have been written but not recorded yet.
        done = sorted(draft.glob("train-?????"))[:-1]
        kept = {path: path.stat().st_mtime_ns for path in done}
    last = prepare(
        "imagenet2012", tmp_path / "killed", paths[0].parent, sets=sets, shard_bytes=2000
    )
    assert content(last) == content(whole)
    times = {path.stat().st_mtime_ns for path in last.iterdir()}
    assert set(kept.values()) <= times
    assert sorted(os.listdir(last.parent)) == ["5.1.0", "5.1.0.lock"]


def test_a_kill_while_shards_are_renamed_is_recovered(tmp_path):
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
    assert subprocess.run(command, cwd=ROOT, timeout=180).returncode == -signal.SIGKILL
    assert not find_prepared("cifar10", tmp_path / "killed", sets=sets)
    for stray in ("test-00003.part", ".progress.json.1.tmp"):  # leftovers of earlier kills
        (tmp_path / "killed/cifar10/3.0.2.incomplete" / stray).write_text("half")
    assert content(prepare("cifar10", tmp_path / "killed", **keywords)) == content(whole)


def test_a_prepared_set_is_left_alone(tmp_path):
    path, _ = make_cifar(tmp_path / "archives")
    keywords = {"data_dir": tmp_path, "manual_dir": path.parent}
    keywords["sets"] = with_archives("cifar10", [path])
    written = prepare("cifar10", **keywords)
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    path.unlink()  # the archives are not needed any more either
    assert prepare("cifar10:3.0.2", **keywords) == written
    assert before == {path: path.stat().st_mtime_ns for path in written.iterdir()}
    assert describe_splits(written) == "train: 20 images in 1 file, test: 4 images in 1 file"
    command = [sys.executable, "main.py", "--mode=prepare", "--config=configs/cifar10.py"]
    done = subprocess.run(
        [*command, f"--config.data.data_dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert f"cifar10 is already prepared in {written}: train: 20 images" in done.stdout
