"""The costs of variants in the report, and the points of its scatter plots."""

from experiments.report.costs import common_scatter, step_times, sweep_scatter
from experiments.report.numbers import group_rows
from tests.support.report_rows import all_rows, row


def test_step_times_of_few_steps_are_left_out_and_those_of_one_seed_marked():
    def times(seeds, steps):
        rows = [row("both", seed, steps=steps) for seed in range(seeds)]
        (group,), _ = group_rows(rows)
        return step_times(group)

    assert times(2, 99) == ({}, "left out below 100 steps")
    for seeds, how in ((1, "one seed, too few to compare"), (2, "fastest seed")):
        found, label = times(seeds, 100)
        assert (list(found), label) == (["both"], f"{how}, cpu x1")


def test_outliers_are_not_drawn_but_named():
    rows = [row("none", 0, 12.0), *(r for r in all_rows() if r["name"] != "none")]
    groups, _ = group_rows(rows)
    scatter = sweep_scatter(groups[0])
    assert [point.name for point in scatter.points] == ["identity", "1x1", "both"]
    assert "none (12.0%)" in scatter.remark
    common = common_scatter(groups)
    named = {point.name for point in common.points if point.labelled}
    # 1x1 costs 4, both and its 5 millions; the groups cost 2.
    assert named == {"branches: both", "branches: 1x1", "groups: 1", "groups: 2", "groups: 4"}


def test_nets_of_the_same_macs_are_drawn_by_their_parameters():
    sizes = {"repvgg": 500_000, "resnet": 300_000, "vgg": 1_100_000}
    changes = {name: {"params": {"fused": n}, "macs": {"fused": 4e7}} for name, n in sizes.items()}
    rows = [row(name, 0, 80.0, "comparison", **fields) for name, fields in changes.items()]
    scatter = sweep_scatter(group_rows(rows)[0][0])
    assert {point.name: point.x for point in scatter.points} == {
        name: n / 1e6 for name, n in sizes.items()
    }
    assert scatter.cost.startswith("parameters")
