"""Rows of results from any number of writers, some of them killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.report.numbers import group_rows
from experiments.report.tables import setup
from experiments.sweeps import run_one
from experiments.sweeps.expand import expand, extra_overrides
from experiments.sweeps.rows import (
    INFO_FILE,
    REPORT_FILE,
    RESULTS,
    is_finished,
    make_row,
    read_info,
    read_rows,
    read_sweeps,
    sweep_fields,
)
from experiments.sweeps.run_one import record
from experiments.sweeps.workdirs import ERROR_FILE
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.runtime.files import append_row
from repvgg_jax.training.metrics import METRICS_FILE
from tests.support.sweep_runs import FIELDS, dotted

ROOT = Path(__file__).parents[2]
WRITERS = """
import os, sys
from repvgg_jax.runtime.files import append_row
for writer in range(5):
    if os.fork() == 0:
        for index in range(60):
            name = f"{writer}-{index}"
            needed = dict(sweep="s", name="n", seed=0, protocol="p", top1={})
            row = {"version": 1, "config_hash": name, **needed, "pad": name * 900}
            append_row(sys.argv[1], row)
        os._exit(0)
assert all(os.wait()[1] == 0 for _ in range(5))
"""


def test_rows_of_earlier_versions_count_as_done():
    rows = read_sweeps(ROOT / RESULTS)
    assert len({row["commit"] for row in rows}) > 1
    for sweep, protocol in sorted({(row["sweep"], row["protocol"]) for row in rows}):
        hashes = {run.config_hash for run in expand(sweep, protocol)}
        found = [r["config_hash"] for r in rows if (r["sweep"], r["protocol"]) == (sweep, protocol)]
        assert found
        assert set(found) <= hashes


def row(name, **fields):
    needed = dict(sweep="branches", name="both", seed=0, protocol="cifar10_short", top1={})
    return {"version": 1, "config_hash": name, **needed, **fields}


def die_while_writing(path, size):
    """Starts a process that is killed after it has written `size` bytes of its row."""
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        return
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, json.dumps(row("dead", pad="x" * 100)).encode()[:size])
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.system
def test_rows_of_many_writers_at_once_are_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    subprocess.run([sys.executable, "-c", WRITERS, str(path)], cwd=ROOT, check=True, timeout=120)
    rows = read_rows(path)
    assert {row["config_hash"] for row in rows} == {f"{w}-{i}" for w in range(5) for i in range(60)}
    assert all(row["pad"] == row["config_hash"] * 900 for row in rows)
    assert path.read_bytes().count(b"\n") == len(rows)


@pytest.mark.filterwarnings("ignore:os.fork")
@pytest.mark.parametrize("size", [1, 5, 40, 120])
def test_an_incomplete_line_of_a_killed_writer_costs_no_other_row(tmp_path, size):
    path = tmp_path / "folder" / "rows.jsonl"
    append_row(path, row("before"))
    die_while_writing(path, size)
    assert [row["config_hash"] for row in read_rows(path)] == ["before"]
    append_row(path, row("after"))
    assert [row["config_hash"] for row in read_rows(path)] == ["before", "after"]


def test_of_rows_of_one_run_the_last_counts(tmp_path):
    path = tmp_path / "rows.jsonl"
    for name, top1 in (("a", 0.1), ("b", 0.2), ("a", 0.3)):
        append_row(path, row(name, top1=top1))
    assert [(row["config_hash"], row["top1"]) for row in read_rows(path)] == [
        ("b", 0.2),
        ("a", 0.3),
    ]
    assert read_rows(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"version": 2, "config_hash": "b"}, "rows.jsonl, line 2: version 2"),
        ({"config_hash": "b"}, "line 2: version None"),
        ({"version": 1, "name": "a", "top1": {}}, "line 2: missing config_hash, sweep, seed"),
        ([1], "line 2: version None"),
    ],
)
def test_rows_of_another_version_are_rejected(tmp_path, line, says):
    path = tmp_path / "rows.jsonl"
    append_row(path, row("a"))
    append_row(path, line)
    with pytest.raises(UsageError, match=says):
        read_rows(path)


def test_lines_that_are_not_rows_are_rejected(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("<<<<<<< HEAD\n" + json.dumps(row("a")) + "\n")
    with pytest.raises(UsageError, match="line 1: not a JSON row"):
        read_rows(path)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"rows\.jsonl cannot be written"):
        append_row(tmp_path / "file" / "rows.jsonl", row("a"))


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    [run] = expand("branches", seeds=[0], only=["none"], overrides=FIELDS)
    workdir = run.workdir(tmp_path)
    (workdir / ERROR_FILE).mkdir(parents=True)
    with pytest.raises(RunError, match=f"{workdir} cannot be written"):
        run_one.execute(run, workdir, tmp_path)


def test_a_row_says_what_differs_from_the_protocol_however_it_was_typed():
    def placed(**given):
        [run] = expand("branches", seeds=[0], only=["none"], overrides=dotted(given))
        return sweep_fields(run)["overrides"]

    own = {"model.branches": ["kxk"]}
    assert placed(optim__learning_rate=0.2, train__epochs=3, data__data_dir="/data") == own
    assert placed(train__epochs=60) == placed(train__epochs=60.0) == own | {"train.epochs": 60.0}
    assert placed(model__branches=("kxk", "1x1")) == {"model.branches": ["kxk", "1x1"]}
    assert placed(model__widths=None) == own | {"model.widths": None}  # of the net's own
    assert placed(data__mean=(0.5, 0.5, 0.5)) == own | {"data.mean": [0.5, 0.5, 0.5]}


def test_a_run_that_was_another_variants_has_a_row_of_its_own(tmp_path):
    fields = {"model.branches": ("kxk",)}
    [other] = expand("branches", seeds=[0], only=["both"], overrides=fields)
    [run] = expand("branches", seeds=[0], only=["none"])
    assert other.config_hash == run.config_hash
    trained = row(run.config_hash, top1={"train_form": 0.5}) | sweep_fields(other)
    append_row(tmp_path / "branches.jsonl", trained)
    for _ in range(2):
        record(run, tmp_path / "no workdir", tmp_path)
        assert [row["name"] for row in read_sweeps(tmp_path)] == ["both", "none"]
    ours, others = group_rows(read_sweeps(tmp_path))[0]
    assert ours.shared == {}
    assert [list(ours.runs[name]) for name in ("none", "both")] == [[0], []]
    assert others.shared == {"model.branches": ["kxk"]}


def test_a_run_that_was_another_protocols_has_a_row_in_its_own(tmp_path):
    fields = {
        "train.epochs": 20.0,
        "model.strides": (1, 1, 2, 2, 2),
        "model.dtype": "bfloat16",
        "optim.warmup_epochs": 1.0,
    }
    [short] = expand("branches", seeds=[0], only=["both"], overrides=fields)
    [run] = expand("branches", "cifar10_full", seeds=[0], only=["both"])
    assert short.config_hash == run.config_hash
    trained = row(run.config_hash, top1={"train_form": 0.5}) | sweep_fields(short)
    append_row(tmp_path / "branches.jsonl", trained)
    for _ in range(2):
        record(run, tmp_path / "no workdir", tmp_path)
    groups, _ = group_rows(read_sweeps(tmp_path))
    shared = {group.protocol: group.shared for group in groups}
    assert shared["cifar10_full"] == {}
    assert shared["cifar10_short"].keys() == fields.keys()
    assert len(groups) == 2


def test_a_run_resumed_with_other_code_names_both_commits(tmp_path, monkeypatch):
    [run] = expand("branches", seeds=[0], only=["none"], overrides=FIELDS)
    start = {"commit": "a" * 40, "dirty": True}
    (tmp_path / INFO_FILE).write_text(json.dumps(start))
    for commit, dirty in (("b" * 40, False), (None, None), ("b" * 40, False)):
        code = {"commit": commit, "dirty": dirty}
        monkeypatch.setattr(run_one, "git_commit", lambda code=code: code)
        run_one.write_info(tmp_path)
        about = read_info(tmp_path)
        assert about["commit"] == commit
        assert about["dirty"]  # it was dirty at the start
    assert about["earlier_commits"] == ["a" * 40]
    trained = row("none", top1={"train_form": 0.5}, device="cpu") | sweep_fields(run) | about
    [[group], _] = group_rows([trained])
    words = "Commit `bbbbbbbbbb` begun with `aaaaaaaaaa` with uncommitted changes."
    assert words in setup(group)[0].text


def test_a_row_does_not_have_the_folders_of_the_data(tmp_path):
    [run] = expand("branches", seeds=[0], only=["none"], overrides=FIELDS)
    names = {"train": "cifar10 train in /home/me/cifar10/3.0.2", "test": "/home/me/cat in hat/val"}
    data = {split: {"name": name, "images": 9} for split, name in names.items()}
    found = {"data": data, "device": "cpu"}
    report = dict(environment=found, earlier_environments=[found], device="cpu", steps=1)
    report |= dict(top1={}, eval_count=9, wall_seconds=1.0, params=1, macs=1, examples_per_second=1)
    (tmp_path / REPORT_FILE).write_text(json.dumps(report))
    (tmp_path / METRICS_FILE).touch()
    made = make_row(run, tmp_path)
    assert "/home" not in json.dumps(made)
    for environment in (made["environment"], *made["earlier_environments"]):
        assert environment["data"]["train"] == {"name": "cifar10 train", "images": 9}
        assert environment["data"]["test"]["name"] == "cat in hat/val"


@pytest.mark.parametrize("text", ["", '{"config_hash": "', "[]"])
def test_a_damaged_file_of_a_run_is_named(tmp_path, text, caplog):
    [run] = expand("branches", seeds=[0], only=["none"], overrides=FIELDS)
    for name in (REPORT_FILE, INFO_FILE):
        (tmp_path / name).write_text(text)
    assert not is_finished(run, tmp_path)  # so that it is resumed and writes its report again
    assert "report.json cannot be read" in caplog.text
    with pytest.raises(UsageError, match=r"run.json cannot be read \(.*\); delete it"):
        read_info(tmp_path)


def test_missing_and_unset_fields_are_extra_overrides_too():
    def strange(sweep, name, **overrides):
        return extra_overrides({"sweep": sweep, "name": name, "overrides": dotted(overrides)})

    assert strange("blocks", "acb") == {"model.block": None}
    assert strange("blocks", "acb", model__block="acb") == {}
    assert strange("blocks", "repvgg", model__widths=None) == {"model.widths": None}
    [run] = expand("deep_init", seeds=[0], only=["he_relu"])
    assert extra_overrides(sweep_fields(run)) == {}  # which has unset fields of its own


@pytest.mark.parametrize(
    ("first", "second"),
    [("branches/both", "quantization/float32"), ("quantization/float32", "branches/both")],
)
def test_a_shared_run_has_its_own_row_in_each_sweep(tmp_path, first, second):
    runs = []
    for words in (first, second):
        sweep, name = words.split("/")
        runs += expand(sweep, seeds=[0], only=[name])
    assert runs[0].config_hash == runs[1].config_hash
    trained = row(runs[0].config_hash, top1={"train_form": 0.5}) | sweep_fields(runs[0])
    append_row(tmp_path / f"{runs[0].sweep}.jsonl", trained)
    record(runs[1], tmp_path / "no workdir", tmp_path)
    groups, others = group_rows(read_sweeps(tmp_path))
    assert not others
    assert {(group.sweep, group.rows[0]["name"]) for group in groups} == {
        (run.sweep, run.name) for run in runs
    }
    assert [group.shared for group in groups] == [{}, {}]
