"""Fused weights that were changed after they were verified are not opened."""

import json

import jax
import jax.numpy as jnp
import pytest

import repvgg_jax as rj
from repvgg_jax.checkpoint.fused import save_fused
from repvgg_jax.checkpoint.load import load_form
from repvgg_jax.cli import evaluate, fuse, train
from repvgg_jax.errors import RunError
from repvgg_jax.fusion.certificate import checksums
from repvgg_jax.runtime.mesh import make_mesh
from tests.support.runs import equal, tiny_config

pytestmark = pytest.mark.medium  # all use a run of two steps


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("certified") / "run"
    train.run_train(tiny_config(train_steps=2), workdir)
    return workdir


def test_certificate_says_what_was_verified(run):
    certificate = json.loads((run / "fusion.json").read_text())
    net, fused = rj.load(run, fused=True)
    assert certificate["step"] == 2
    assert certificate["images"] == 360
    assert certificate["max_relative_error"] < 1e-5
    assert certificate["exact"]["top1_agreement"] == 1.0
    assert set(certificate["blocks"]) == set(net.blocks())
    assert certificate["sha256"] == checksums(fused)
    assert list(certificate["sha256"]) == [*net.blocks(), "head"]
    report = json.loads((run / "report.json").read_text())
    assert certificate["config_hash"] == report["config_hash"]


def test_a_loaded_run_is_evaluated_over_all_devices(run, capsys):
    report = json.loads((run / "report.json").read_text())
    evaluate.run_eval(None, run)
    assert capsys.readouterr().out.count(f"top-1 {report['top1']['fused']:.2%}") == 2


@pytest.mark.parametrize("fault", [jnp.nan, 1.01])
def test_a_fusion_that_is_not_the_train_form_is_not_written(run, tmp_path, monkeypatch, fault):
    def faulty(net, variables):
        plain, fused = rj.fuse(net, variables)
        kernel = fused["params"]["stage1_block0"]["conv"]["kernel"]
        fused["params"]["stage1_block0"]["conv"]["kernel"] = fault * kernel
        return plain, fused

    before = (run / "fusion.json").read_text()
    monkeypatch.setattr(fuse, "fuse", faulty)
    with pytest.raises(RunError, match=r"nothing was written.*worst block, stage1_block0; "):
        fuse.run_fuse(None, run)
    assert (run / "fusion.json").read_text() == before


def test_a_net_without_blocks_whose_logits_are_not_finite_is_not_written(tmp_path):
    net = rj.create("deep_plain", num_classes=5, depth=2, width=4)
    variables = jax.tree.map(lambda leaf: leaf * jnp.nan, rj.init(net, jax.random.key(0), 8))
    images = jnp.ones((2, 8, 8, 3))
    with pytest.raises(RunError, match="error of inf in the logits; the limit is fuse"):
        fuse.fuse_and_save((net, variables), 1, tmp_path, images, 1e-3, make_mesh())
    assert not any(tmp_path.iterdir())


def test_a_changed_weight_names_its_block(run, capsys, caplog):
    _, fused = rj.load(run, fused=True)
    certificate = json.loads((run / "fusion.json").read_text())
    changed = jax.tree.map(lambda leaf: leaf, fused)
    kernel = changed["params"]["stage1_block1"]["conv"]["kernel"]
    changed["params"]["stage1_block1"]["conv"]["kernel"] = kernel.at[1, 1, 0, 0].add(1e-6)
    save_fused(run, changed, certificate)
    with pytest.raises(rj.UsageError, match=r"weights of stage1_block1 differ .*--mode=fuse"):
        rj.load(run, fused=True)
    for text, problem in (("", "cannot be read"), ("[]", "cannot be read"), ("{}", "has no check")):
        (run / "fusion.json").write_text(text)
        with pytest.raises(rj.UsageError, match=f"fusion.json {problem}.*--mode=fuse"):
            rj.load(run, fused=True)
        train.run_train(tiny_config(train_steps=2), run)  # finished
        assert "top-1" in capsys.readouterr().out
        assert "fusion.json" in caplog.messages[-1]
    (run / "fused" / "_METADATA").write_text("{")
    with pytest.raises(rj.UsageError, match=r"fused cannot be read .*; run --mode=fuse"):
        rj.load(run, fused=True)
    fuse.run_fuse(None, run)
    equal(rj.load(run, fused=True)[1], fused)


def test_fused_weights_of_an_earlier_step_are_called_that(run, capsys, caplog):
    certificate = json.loads((run / "fusion.json").read_text())
    fused = rj.load(run, fused=True)[1]
    save_fused(run, fused, certificate | {"step": 1})
    (run / "confusion.png").unlink()
    evaluate.run_eval(None, run, step=2)
    assert "fused at step 1, not 2" in capsys.readouterr().out
    assert not (run / "confusion.png").exists()  # the report's
    train.run_train(tiny_config(train_steps=2), run)  # finished
    assert "the fused weights are of step 1\n" in capsys.readouterr().out
    net, _, form = load_form(run)
    assert not net.is_fused
    assert form.startswith("train form, step 2 (the fused weights are of step 1; --step=1 uses")
    net, _, form = load_form(run, step=1)
    assert net.is_fused
    assert form == "fused form, step 1"
    assert not caplog.messages
    equal(rj.load(run, fused=True, step=1)[1], fused)
    assert not caplog.messages
    equal(rj.load(run, fused=True)[1], fused)
    assert "are of step 1, not of the latest checkpoint, 2" in caplog.text
    with pytest.raises(
        rj.UsageError, match=r"of step 1, not 2; replace them by --mode=fuse --step=2"
    ):
        rj.load(run, fused=True, step=2)
    assert load_form(run, step=2)[2] == "train form, step 2"
    for command in (fuse.run_fuse, evaluate.run_eval):
        with pytest.raises(rj.UsageError, match=r"no checkpoint of step 1 .*; available: \[2\]"):
            command(None, run, step=1)
    fuse.run_fuse(None, run, step=2)
    assert load_form(run)[2] == load_form(run, step=2)[2] == "fused form, step 2"


def test_a_config_of_another_version_is_named(run, tmp_path):
    tree = json.loads((run / "config.json").read_text())
    del tree["fuse"]["tolerance"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(rj.UsageError, match=r"another version: fuse\.tolerance missing"):
        rj.load(tmp_path)
