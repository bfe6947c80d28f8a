"""Tests of the functions behind the notebook on branches."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from configs import quickstart
from experiments.studies import analysis
from repvgg_jax.blocks.repvgg import RepVGGBlock
from repvgg_jax.config.fields import to_json
from tests.support.runs import train
from tests.support.variables import random_images, random_variables

ROOT = Path(__file__).parents[2]
SMALL = dict(depths=(1, 2, 1), widths=(8, 8, 12), strides=(2, 1, 2), num_classes=5)


@pytest.fixture(scope="module")
def trained():
    net = rj.create("repvgg_a0", **SMALL)
    return net, random_variables(net, 0)


@pytest.mark.medium
def test_folded_branches_add_up_to_the_fused_kernel(trained):
    net, variables = trained
    _, fused = rj.fuse(net, variables)
    folded = analysis.folded_branches(net, variables)
    assert {len(branches) for branches in folded.values()} == {2, 3}
    for layer, branches in folded.items():
        conv = fused["params"][layer]["conv"]
        for name, part in (("kernel", 0), ("bias", 1)):
            total = sum(affine[part] for affine in branches.values())
            np.testing.assert_allclose(total, conv[name], atol=1e-5 * np.abs(total).max())


@pytest.mark.medium
def test_scales_and_norms_are_of_the_trained_branches(trained):
    net, variables = trained
    for row in analysis.branch_table(net, variables):
        params, stats = (variables[kind][row["layer"]] for kind in ("params", "batch_stats"))
        branch = row["branch"]
        gamma, var = params[f"bn_{branch}"]["scale"], stats[f"bn_{branch}"]["var"]
        kernel = params.get(f"conv_{branch}", {"kernel": np.eye(len(gamma))})["kernel"]
        assert row["kernel_norm"] == pytest.approx(
            np.sqrt((np.asarray(kernel) ** 2).sum()), rel=1e-5
        )
        expected = np.mean(np.abs(gamma) / np.sqrt(var + 1e-5))
        assert row["scale"] == pytest.approx(expected, rel=1e-5)


def test_images_are_spread_over_the_split(tmp_path):
    config = quickstart.get_config()
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    images, labels = analysis.images_of(tmp_path, 10)
    every, of_all = analysis.images_of(tmp_path, 10**6)
    places = np.linspace(0, len(every) - 1, 10).astype(int)
    np.testing.assert_array_equal(images, every[places])
    np.testing.assert_array_equal(labels, of_all[places])
    assert images.shape[0] == 10


def test_center_shares_sum_to_one_and_a_removed_branch_has_none(trained):
    net, variables = trained
    rows = analysis.branch_table(net, variables)
    for layer in net.blocks():
        shares = [row["center_share"] for row in rows if row["layer"] == layer]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    gone = analysis.without_branch(variables, "stage1_block1", "identity")
    [row] = [
        row
        for row in analysis.branch_table(net, gone)
        if (row["layer"], row["branch"]) == ("stage1_block1", "identity")
    ]
    assert row["center_share"] == row["folded_norm"] == row["scale"] == 0


@pytest.mark.parametrize("branch", ["kxk", "1x1", "identity"])
def test_a_removed_branch_is_a_block_without_it(trained, branch):
    net, variables = trained
    layer = "stage1_block1"
    x = random_images(2, 6, 6, 8, seed=1)
    removed = analysis.without_branch(variables, layer, branch)
    own = {name: removed[name][layer] for name in ("params", "batch_stats")}
    rest = tuple(b for b in ("kxk", "1x1", "identity") if b != branch)
    lacking = RepVGGBlock(8, branches=rest)
    kept = {
        kind: {n: leaf for n, leaf in variables[kind][layer].items() if not n.endswith(branch)}
        for kind in ("params", "batch_stats")
    }
    got = net.blocks()[layer].apply(own, x)
    np.testing.assert_allclose(got, lacking.apply(kept, x), atol=1e-4)
    assert (
        np.abs(got - net.blocks()[layer].apply({k: variables[k][layer] for k in own}, x)).max()
        > 0.1
    )


@pytest.mark.medium
def test_removals_are_of_every_branch_and_start_with_none(trained):
    net, variables = trained
    images, labels = random_images(6, 16, 16, 3), jnp.arange(6) % 5
    rows = analysis.removals(net, variables, images, labels)
    count = sum(len(branches) for branches in analysis.branches_of(net, variables).values())
    assert len(rows) == 1 + count
    logits = net.apply(variables, images, train=False)
    expected = -jax.nn.log_softmax(logits)[jnp.arange(6), labels].mean()
    assert rows[0]["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert len({row["loss"] for row in rows}) == len(rows)


@pytest.mark.medium
def test_receptive_fields_are_the_same_in_both_forms_and_grow(trained):
    net, variables = trained
    images = random_images(3, 32, 32, 3)
    ours = analysis.receptive_fields(net, variables, images)
    theirs = analysis.receptive_fields(*rj.fuse(net, variables), images)
    seen = []
    for stage, field in ours.items():
        np.testing.assert_allclose(field, theirs[stage], atol=1e-3)
        seen.append(int((field > 0).sum()))
    assert seen[0] == 9
    assert seen == sorted(seen)
    assert seen[-1] <= 15**2  # 3 + 2 (2 + 2) + 4 pixels


@pytest.mark.medium
def test_activation_ranges_are_before_the_relu_in_both_forms(trained):
    net, variables = trained
    images = random_images(4, 16, 16, 3)
    ours = analysis.activation_ranges(net, variables, images)
    theirs = analysis.activation_ranges(*rj.fuse(net, variables), images)
    for row, other in zip(ours, theirs, strict=True):
        assert row["min"] <= row["low"] < 0 < row["high"] <= row["max"]
        for name in ("min", "max", "low", "high"):
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-3)


def test_one_scale_for_each_channel_rounds_no_worse(trained):
    for row in analysis.weight_table(*trained):
        assert 0 < row["channel_error"] < row["tensor_error"] < 0.5
    w = np.random.default_rng(0).normal(size=(3, 3, 8, 8))
    assert analysis.rounding_error(w, np.abs(w).max()) <= 0.5 * np.abs(w).max() / 127 / w.std()


def test_the_fused_kernel_differs_by_what_the_other_branches_add(trained):
    net, variables = trained
    plain = net.clone(block="plain")
    for row in analysis.kernel_table(net, variables):
        branches = analysis.folded_branches(net, variables)[row["layer"]]
        fused = np.sum([affine.kernel for affine in branches.values()], axis=0)
        others = fused - branches["kxk"].kernel
        norm = np.linalg.norm(fused)
        assert row["change"] == pytest.approx(np.linalg.norm(others) / norm, rel=1e-5)
        aside = np.delete(others.reshape(9, -1), 4, axis=0)
        assert not aside.any()  # they add to the center alone
        assert row["center"] == pytest.approx((np.linalg.norm(fused[1, 1]) / norm) ** 2, rel=1e-5)
        trained = np.asarray(variables["params"][row["layer"]]["conv_kxk"]["kernel"])
        energy = (trained**2).sum((2, 3)) / (trained**2).sum()
        assert row["trained_center"] == pytest.approx(energy[1, 1], rel=1e-5)
        assert row["trained_center"] != pytest.approx(row["center"], rel=0.01)
    own = random_variables(plain, 0)
    with pytest.raises(rj.UsageError, match="only RepVGGBlock is supported"):
        analysis.kernel_table(*rj.fuse(net, variables))
    for row in analysis.kernel_table(plain, own):
        assert row["change"] == 0


def notebook_as(kind):
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed")
    return jupytext.read(ROOT / f"experiments/studies/analysis.{kind}")


@pytest.mark.system  # jupytext starts pandoc
def test_the_notebook_is_its_text_without_outputs():
    notebook, text = notebook_as("ipynb"), notebook_as("md")
    cells = [[(cell.cell_type, cell.source) for cell in one.cells] for one in (notebook, text)]
    assert cells[0] == cells[1]
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.system
@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    notebook = notebook_as("ipynb")
    config = quickstart.get_config()
    config.train.steps, config.optim.warmup_epochs = 2, 0.0
    train(config, tmp_path / "run")
    notebook.cells[1].source = (
        f"import os; os.environ['ANALYSIS_WORKDIR'] = {str(tmp_path / 'run')!r}\n"
        + notebook.cells[1].source
    )
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": ROOT / "experiments"}}
    ).execute()
    shown = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "display_data"
    ]
    assert sum("image/png" in data for data in shown) == 7
