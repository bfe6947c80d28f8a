"""Tests of the throughput of variants, and of the rows that get it."""

import json

import pytest

from experiments.benchmarks import throughput
from experiments.benchmarks.throughput import FILE, measure, with_throughput
from experiments.report.costs import common_scatter, fused_costs, step_times
from experiments.report.numbers import group_rows
from experiments.report.tables import NONE, cost_table
from experiments.sweeps.expand import expand
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.files import append_row

SMALL = {"model.depths": (1,), "model.widths": (4,), "model.strides": (2,)}


def row(name, **overrides):
    own = {"none": {"model.branches": ["kxk"]}, "1x1": {"model.branches": ["kxk", "1x1"]}}
    own = own.get(name, {})
    top1 = {"train_form": 0.5, "fused": 0.5}
    about = {"sweep": "branches", "name": name, "seed": 0, "protocol": "cifar10_short"}
    memory, seconds = (2e6, 0.1) if name == "none" else (3e6, 0.4)
    run = {"temporaries_bytes": memory, "step_seconds": seconds, "steps": 1000}
    run["device"] = "cpu x1, 1 core"
    return {**about, **run, "overrides": own | overrides, "top1": top1, "config_hash": name}


@pytest.mark.system
def test_equal_programs_are_measured_once():
    shared = {"data.image_size": 8, "train.batch_size": 2, **SMALL}
    branches = expand("branches", seeds=[0], only=["none", "both"], overrides=shared)
    few = ["plain", "dbb", "relu_in_branch"]
    blocks = expand("blocks", seeds=[0], only=few, overrides=shared)
    found = measure([*branches, *blocks], rounds=1)
    deployed, training = found["deployed"], found["training"]
    assert deployed["branches"]["none"] == deployed["branches"]["both"] == deployed["blocks"]["dbb"]
    assert deployed["blocks"]["relu_in_branch"] != deployed["blocks"]["dbb"]  # it is not fused
    assert training["branches"]["none"] == training["blocks"]["plain"]
    dbb, plain = training["blocks"]["dbb"], training["blocks"]["plain"]
    assert dbb["temporaries_bytes"] > plain["temporaries_bytes"] > 0
    assert dbb["images_per_second"] == pytest.approx(2 / dbb["seconds"], rel=1e-3)


def record(folder):
    """Writes a record of two variants: equal when deployed, `both` half as fast in training."""
    record = {"version": 2, "protocol": "cifar10_short", "device": "cpu x1, 2 cores", "batch": 64}
    record |= {"rounds": 9, "commit": "0123456789abcdef", "dirty": False}
    record["deployed"] = {
        "branches": {name: {"images_per_second": 100.0} for name in ("none", "both")}
    }
    record["training"] = {
        "branches": {
            "none": {"seconds": 0.25, "temporaries_bytes": 10_000_000},
            "both": {"seconds": 0.5, "temporaries_bytes": 12_500_000},
        }
    }
    (folder / FILE).write_text(json.dumps([record]))


def test_a_row_gets_the_figures_of_its_own_programs(tmp_path):
    changes = [{}, {"train.epochs": 9.0}, {"optim.ema_decay": 0.9}, {"model.groups": 2}]
    rows = [row("both", **changed) for changed in changes]
    assert with_throughput(rows, tmp_path) == rows
    record(tmp_path)
    alike, longer, averaged, another = with_throughput(rows, tmp_path)
    assert alike["throughput"] == longer["throughput"]
    how = {"measured": "batch 64, cpu x1, 2 cores", "by": "9 rounds, commit `0123456789`"}
    assert alike["throughput"].keys() == {"training", "deployed", *how}
    assert how.items() <= averaged["throughput"].items()
    assert "training" not in averaged["throughput"]  # its step is a different one
    assert "throughput" not in another


def test_interleaved_costs_replace_those_of_the_runs(tmp_path):
    rows = [row("none"), row("both")]
    [[group], _] = group_rows(rows)
    assert "MACs" in fused_costs(group)[1]
    times, how = step_times(group)
    assert times == {"none": 100.0, "both": 400.0}
    assert how == "one seed, too few to compare, cpu x1, 1 core"
    record(tmp_path)
    [[group], _] = group_rows(with_throughput(rows, tmp_path))
    how = "batch 64, cpu x1, 2 cores"
    assert fused_costs(group) == (
        {"none": 100.0, "both": 100.0},
        f"images/s as deployed ({how})",
    )
    assert step_times(group) == ({"none": 250.0, "both": 500.0}, how)
    table = cost_table(group)
    column = table.header.index("times `both`")
    lines = {line[0]: line[column : column + 2] for line in table.rows}
    assert (lines["`none`"], lines["`both`"]) == (["0.50", "10.0"], ["1.00", "12.5"])


def test_unmeasured_variants_are_named(tmp_path):
    record(tmp_path)
    four = {"overrides": {"model.groups": 4}, "macs": {"fused": 5e6}, "config_hash": "groups 4"}
    other = row("both") | {"sweep": "groups", "name": "4", **four}
    rows = [row("none"), row("both"), row("1x1"), other]
    groups, _ = group_rows(with_throughput(rows, tmp_path))
    scatter = common_scatter(groups)
    assert "images/s" in scatter.cost
    assert {point.name for point in scatter.points} == {"branches: none", "branches: both"}
    assert scatter.unmeasured == ["branches: 1x1", "groups: 4"]
    assert "not drawn: branches: 1x1, groups: 4 (" in scatter.remark
    table = cost_table(groups[0])
    lines = {line[0]: line for line in table.rows}
    assert lines["`1x1`"][table.header.index("images/s as deployed")] == NONE


def test_rows_of_unknown_variants_are_skipped(tmp_path):
    record(tmp_path)
    gone = [row("none") | {"sweep": "gone"}, row("both") | {"name": "gone"}]
    assert with_throughput(gone, tmp_path) == gone
    append_row(tmp_path / "branches.jsonl", {"version": 1, **gone[1]})
    text = [f"--results={tmp_path}"]
    assert throughput.main(text) == UsageError.exit_code  # no row has a variant of this code


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"version": 0}]', ": version 0, but .* version 2"),
        ("[5]", ": version None, but .* version 2"),
        ("", " cannot be read .*; remove it and measure again"),
        ("{}", " cannot be read .*; remove it and measure again"),
    ],
)
def test_a_file_of_another_version_or_a_damaged_one_is_rejected(tmp_path, text, says):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UsageError, match=f"throughput.json{says}"):
        with_throughput([row("none")], tmp_path)
