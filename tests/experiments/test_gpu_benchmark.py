"""Tests of the benchmark of GPUs, all of which runs on a CPU if its sizes are small."""

import importlib.util
import io
import json
import sys

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from experiments.benchmarks.gpu import training_part
from experiments.benchmarks.gpu.rows import COMPILED, EAGER, FUSED, OURS, PREPARED, STEP
from experiments.benchmarks.gpu.sizes import Sizes
from experiments.benchmarks.gpu.table import tables
from experiments.benchmarks.gpu.torch_part import open_device
from experiments.benchmarks.measuring import Guarded
from experiments.benchmarks.processes import rows_of
from experiments.benchmarks.programs import jax_forward, jax_prepared_forward
from repvgg_jax.errors import RunError, UsageError
from tests.support.commands import python

NET = {"depths": [1], "widths": [4], "strides": [2], "num_classes": 10}
SMALL = {
    "model": "repvgg_a0",
    "net": json.dumps(NET),
    "image_size": 8,
    "batch": 4,
    "rounds": 1,
    "product": 64,
    "train_images": 64,
    "train_steps": 4,
}
FIELDS = {
    "model.depths": (1,),
    "model.widths": (4,),
    "model.strides": (2,),
    "train.batch_size": 16,
    "train.eval_batch_size": 16,
    "train.log_every": 1,
}
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed: the other side"
)


def benchmark(folder, **changes):
    """Returns the output of the command at toy size, and its rows by figure, batch and program."""
    path = folder / "gpu.jsonl"
    fields = {f"config.{name}": value for name, value in FIELDS.items()}
    flags = SMALL | fields | changes | {"output": path}
    command = [f"--{name}={value}" for name, value in flags.items()]
    output = python("-m", "experiments.benchmarks.gpu", *command)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row["commit"] and row["command"] and row["device"] == "cpu" for row in rows)
    return output, {(row["figure"], row["batch"], row["program"]): row for row in rows}


@needs_torch
@pytest.mark.system
def test_all_figures_at_toy_size(tmp_path):
    # No machine has the memory for such a copy.
    output, rows = benchmark(tmp_path, only="repvgg_jax,pytorch", copy=10**15)
    copy = rows.pop(("copy", None, OURS))
    assert "Out of memory" in copy["error"]
    assert f"- copy, repvgg_jax: {copy['error']}\n" in output
    assert not [row for row in rows.values() if "error" in row]
    ours, theirs = rows[STEP, 4, OURS], rows[STEP, 4, EAGER]
    assert ours["images_per_second"] == pytest.approx(4000 / ours["milliseconds"])
    assert 0 < ours["share_of_product"] < 1
    assert theirs["versions"].keys() == {"torch"}
    ratio = f"{ours['milliseconds'] / theirs['milliseconds']:.2f}"
    [line] = [line for line in output.splitlines() if line.startswith(f"| {STEP}, batch 4 ")][:1]
    assert [cell.strip() for cell in line.split("|")][4:7] == ["not measured", ratio, "-"]
    assert {(FUSED, 1, OURS), (PREPARED, 1, OURS), (FUSED, 1, EAGER)} <= rows.keys()


@pytest.mark.medium
def test_training_of_a_small_net():
    file = io.StringIO()
    training_part.measure("cifar10_short", Sizes(**SMALL, fields=FIELDS), file)
    [row] = map(json.loads, file.getvalue().splitlines())
    assert (row["figure"], row["batch"]) == ("training, configs/cifar10_short.py:full", 16)
    assert row["images_per_second"] > 0
    assert row["first_step_seconds"] > row["compile_seconds"] > 0


@needs_torch
@pytest.mark.system
@pytest.mark.slow
def test_compiled_pytorch_at_toy_size(tmp_path):
    output, rows = benchmark(tmp_path, only="cifar10_short,torch.compile,cifar10")
    assert ("training, configs/cifar10.py:full", 16, OURS) in rows
    assert {(STEP, 4, COMPILED), (FUSED, 4, COMPILED), (FUSED, 1, COMPILED)} < rows.keys()
    assert "Not measured" not in output


@pytest.mark.system
@pytest.mark.parametrize(
    ("script", "seconds", "error"),
    [
        ("sys.exit(3)", 60, "ended by exit code 3, see {log}"),
        ("os.kill(os.getpid(), 9)", 60, "ended by SIGKILL, see {log}"),
        ("time.sleep(60)", 2, "stopped, the time is up"),
        ("os.fork() or time.sleep(60); time.sleep(60)", 2, "stopped, the time is up"),
    ],
)
def test_a_part_that_ends_early_keeps_its_rows(tmp_path, script, seconds, error):
    log = tmp_path / "part.log"
    start = "import json, os, sys, time; print(json.dumps({'figure': 'one'}), flush=True); "
    first, last = rows_of(["-c", start + script], {}, log, seconds)
    assert first == {"figure": "one"}
    assert last == {"error": error.format(log=log)}


def test_a_program_that_fails_leaves_the_others():
    calls = []

    def run():
        calls.append(0)
        raise MemoryError("out of memory:\n 10 GB")

    guarded = Guarded(run)
    assert guarded.run() is guarded.run() is None
    assert calls == [0]
    assert guarded.error == "MemoryError: out of memory: 10 GB"
    assert Guarded(lambda: 5).run() == 5


def test_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RunError, match="PyTorch is not installed"):
        open_device("cpu")


@needs_torch
@pytest.mark.medium
def test_pytorch_without_the_devices_here():
    import torch

    if not torch.version.cuda:
        with pytest.raises(RunError, match="is a build without CUDA"):
            open_device("cuda")
    with pytest.raises(RunError, match="but this machine has a tpu"):
        open_device("tpu")


def test_prepared_weights_give_the_same_logits():
    net = Sizes(model="repvgg_a0", net=json.dumps(NET)).make_net(block="fused")
    arguments = net, rj.init(net, jax.random.key(0)), 2, 8
    plain, prepared = jax_forward(*arguments), jax_prepared_forward(*arguments)
    np.testing.assert_array_equal(*jax.device_get([plain.run(), prepared.run()]))


def test_the_table_compares_with_pytorch():
    about = {"device": "H100", "versions": {"jax": "1.0"}, "commit": "0123456789", "dirty": False}
    about |= {"batch": 256, "date": "2030-01-01", "part": "torch.compile"}
    times = {(FUSED, OURS): 9.76, (PREPARED, OURS): 9.5, (FUSED, EAGER): 14.94, (STEP, OURS): 61.1}
    rows = [
        about
        | {"figure": figure, "program": program, "milliseconds": time, "fastest": time}
        | {"temporaries": None, "compile_seconds": 1.0, "images_per_second": 256e3 / time}
        for (figure, program), time in times.items()
    ]
    rows.append(about | {"figure": STEP, "program": COMPILED, "error": "out of memory"})
    text = tables([*rows, {"part": "cifar10", "error": "the time is up"}], Sizes())
    lines = {line.split("|")[1].strip(): line for line in text.splitlines()[:9] if "|" in line}
    cells = [cell.strip() for cell in lines[f"{FUSED}, batch 256"].split("|")]
    assert cells[2:7] == ["**9.76**", "14.9", "not measured", "0.65", "-"]
    assert lines[f"{PREPARED}, batch 256"].split("|")[5].strip() == "0.64"
    assert text.startswith("H100, JAX 1.0, 2030-01-01, commit 0123456. repvgg_b1 at 224 pixels")
    missing = [f"- {STEP}, batch 256, {COMPILED}: out of memory", "- cifar10: the time is up"]
    assert text.endswith("\n".join(["Not measured:", *missing]))


def test_wrong_sizes_are_one_line():
    for text in ("depths", "[1]"):
        with pytest.raises(UsageError, match="--net="):
            Sizes(net=text).make_net()
    with pytest.raises(UsageError, match="no such field"):
        Sizes(fields={"model.depht": 1}).make_config("cifar10")
