"""Tests of the command line in separate processes, as a user runs it."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from tests.support.commands import ROOT, main

QUICK = ("--config", "configs/quickstart.py")
DATA = Path(os.environ.get("REPVGG_JAX_TEST_DATA", ROOT.parent / "shared"))


def test_a_wrong_command_line_is_one_line_and_exit_code_2(tmp_path):
    output = main(*QUICK, "--config.train.epoch=3", "--workdir", tmp_path / "run", code=2)
    assert output.startswith(
        "error: --config.train.epoch: no such field; did you mean train.epochs"
    )
    assert output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_data_set_names_folder_and_command(tmp_path):
    arguments = ["--config", "configs/b1.py", f"--config.data.data_dir={tmp_path}/none"]
    opening, output = main(*arguments, "--workdir", tmp_path / "run", code=2).splitlines()
    assert opening == f"training repvgg_b1 (bfloat16) in {tmp_path / 'run'}"
    assert output.startswith("error: ")
    assert f"{tmp_path}/none" in output
    assert not (tmp_path / "run").exists()
    command = output.split("`")[1].replace("<", "").replace(">", "")
    python, script, *arguments = command.partition(" --config.data.manual_dir")[0].split()
    assert (python, script) == ("python", "main.py")
    assert arguments[:3] == ["--mode=prepare", "--config", "configs/b1.py"]
    output = main(*arguments, code=2)
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar not found" in output
    assert output.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_the_whole_way_then_eval_and_fuse(tmp_path):
    workdir = tmp_path / "run"
    short = [*QUICK, "--config.train.steps=30", "--config.optim.warmup_epochs=0.0"]
    short += ["--config.model.depths=(1,1,1,1)", "--config.train.batch_size=64"]
    table = main(*short, "--workdir", workdir, devices=2)
    report = json.loads((workdir / "report.json").read_text())
    assert "train form" in table
    assert report["steps"] == 30
    assert report["eval_count"] == 360
    assert report["top1"]["train_form"] == report["top1"]["fused"] > 0.3
    assert report["fusion"]["top1_agreement"] == 1.0
    assert report["fusion"]["max_relative_error"] < 1e-5
    deployed = report["fusion"]["deployed"]
    assert report["fusion"]["dtype"] == deployed["dtype"] == "float32"
    assert deployed["relative_error"] <= report["fusion"]["max_relative_error"]
    assert report["params"]["fused"] < report["params"]["train_form"]
    assert report["macs"]["fused"] < report["macs"]["train_form"]
    programs = {"_create_state", "train_steps", "eval_steps", "_fused_variables", "_compare_forms"}
    assert programs & set(report["compiled"])  # those in the cache may take less than 0.1 s
    for name in (
        "metrics.jsonl",
        "curves.png",
        "confusion.png",
        "tensorboard",
        "config.json",
        "checkpoints/30",
    ):
        assert (workdir / name).exists(), name

    net, variables = rj.load(workdir)
    plain, fused = rj.load(workdir, fused=True)
    assert plain == net.clone(block="fused")
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    expected = net.apply(variables, images)
    np.testing.assert_allclose(plain.apply(fused, images), expected, rtol=1e-3, atol=1e-4)

    fused = main("--mode=fuse", "--workdir", workdir)
    assert "stage3_block0" in fused
    assert f"rj.load('{workdir}', step=30, fused=True) opens the fused pair" in fused
    output = main("--mode=eval", "--workdir", workdir)
    assert output.count(f"top-1 {report['top1']['fused']:.2%}") == 2
    assert output.split("lowest of 10 classes")[1] == table.split("lowest of 10 classes")[1]

    output = main(*QUICK, "--config.train.steps=31", "--workdir", workdir, code=2)
    assert "train.steps: 30 in the run, 31 now" in output
    assert f"use --config.init_from={workdir} with another --workdir" in output


def test_class_folders_of_real_photographs(tmp_path):
    photographs = DATA / "imagenet_samples"
    if not photographs.is_dir():
        pytest.skip(f"no folder of photographs at {photographs}")
    main(
        *("--config", "configs/a0.py", "--workdir", tmp_path / "run"),
        *("--config.data.source=folder", f"--config.data.data_dir={photographs}"),
        *("--config.model.widths=(8,8,8,8,8)", "--config.model.depths=(1,1,1,1,1)"),
        *("--config.train.steps=2", "--config.train.batch_size=16"),
        *("--config.train.eval_batch_size=64", "--config.model.dtype=float32"),
    )
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["eval_count"] == 200
    assert report["fusion"]["max_relative_error"] < 1e-5
