"""Throughput as deployed: one figure for what fuses to one program, and rows that it belongs to."""

import json

import pytest

from experiments.report_costs import fused_costs
from experiments.report_numbers import group_rows
from experiments.sweeps import expand
from experiments.throughput import FILE, measure, with_throughput
from repvgg_jax.errors import UsageError

SMALL = {"model.depths": (1, 1), "model.widths": (4, 4), "model.strides": (2, 2)}


def row(name, **overrides):
    own = {"none": {"model.branches": ["kxk"]}, "both": {}}[name]
    top1 = {"train_form": 0.5, "fused": 0.5}
    about = {"sweep": "branches", "name": name, "seed": 0, "protocol": "cifar10_short"}
    return {**about, "overrides": own | overrides, "top1": top1, "config_hash": name}


def test_what_fuses_to_one_program_has_one_figure():
    shared = {"model.block": None, "data.image_size": 8, **SMALL}
    branches = expand("branches", seeds=[0], only=["none", "both"], overrides=shared)
    del shared["model.block"]
    blocks = expand("blocks", seeds=[0], only=["dbb", "relu_in_branch"], overrides=shared)
    found = measure([*branches, *blocks], batch=2, rounds=1)["images_per_second"]
    assert found["branches"]["none"] == found["branches"]["both"] == found["blocks"]["dbb"] > 0
    assert found["blocks"]["relu_in_branch"] != found["blocks"]["dbb"]  # it is not fused


def test_a_row_has_the_figure_of_the_net_that_it_is_of(tmp_path):
    rows = [row("none"), row("both", **{"train.epochs": 9.0}), row("both", **{"model.groups": 2})]
    assert with_throughput(rows, tmp_path) == rows
    record = {"version": 1, "protocol": "cifar10_short", "device": "cpu x1, 2 cores", "batch": 64}
    record["images_per_second"] = {"branches": {"none": 100.0, "both": 90.0}}
    (tmp_path / FILE).write_text(json.dumps([record]))
    first, trained_longer, of_another_net = with_throughput(rows, tmp_path)
    assert first["throughput"]["images_per_second"] == 100.0
    assert trained_longer["throughput"]["images_per_second"] == 90.0
    assert "throughput" not in of_another_net
    [[group], _] = group_rows([first, row("both")])
    assert "MACs" in fused_costs(group)[1]  # not before all have one
    [[group], _] = group_rows(with_throughput([row("none"), row("both")], tmp_path))
    words = "images/s as deployed (batch 64, cpu x1, 2 cores)"
    assert fused_costs(group) == ({"none": 100.0, "both": 90.0}, words)


def test_a_file_of_another_version_is_refused(tmp_path):
    (tmp_path / FILE).write_text(json.dumps([{"version": 0}]))
    with pytest.raises(UsageError, match=r"throughput.json: version 0, where this code reads 1"):
        with_throughput([row("none")], tmp_path)
