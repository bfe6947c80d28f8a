"""Tests of the summary that a run prints at its end."""

import re

from repvgg_jax.training.summary import summary

REPORT = {
    "model": "repvgg_a0",
    "config_hash": "0123abcd",
    "device": "cpu x1",
    "steps": 1200,
    "examples_per_second": 3456.4,
    "top1": {"train_form": 0.9806, "fused": 0.9778},
    "top5": {"train_form": 1.0, "fused": 0.9972},
    "loss": {"train_form": 0.0712, "fused": 0.0713},
    "eval_count": 360,
    "fusion": {"max_relative_error": 3.1e-7, "top1_agreement": 1.0, "logit_kl": 1.2e-13},
    "params": {"train_form": 9108968, "fused": 8309384},
    "macs": {"train_form": 1513000000, "fused": 1361000},
    "wall_seconds": 45.2,
}


def test_summary_has_both_columns():
    lines = summary(REPORT).splitlines()
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells == [
        ["repvgg_a0 on cpu x1", "train form", "fused"],
        ["top-1", "98.06%", "97.78%"],
        ["top-5", "100.00%", "99.72%"],
        ["loss", "0.0712", "0.0713"],
        ["parameters", "9,108,968", "8,309,384"],
        ["multiply-adds", "1.513 G", "1.361 M"],
        [
            "fusion in float32: max relative error 3.1e-07, top-1 agreement 100.00%, "
            "logit KL 1.2e-13"
        ],
        ["evaluated 360 images; 1,200 steps at 3,456 images/s; 45.2 s in all; config 0123abcd"],
    ]
    assert len({len(line) for line in lines[:6]}) == 1  # right-aligned columns


def test_summary_of_a_resumed_run_of_few_classes():
    times = {"first_step_seconds": 7.25, "start_seconds": 30.0, "wall_seconds": 7500.0, "starts": 3}
    changes = {"model": "RepVGG (widths 4-8)", "training_loss": "label smoothing 0.1"}
    changes["best"] = {"step": 1100, "top1": 0.9875}
    few = {name: value for name, value in REPORT.items() if name != "top5"}
    text = summary(few | changes | times)
    assert "top-5" not in text
    assert "at step 1,100, chosen on the evaluation images; the report and the fused" in text
    opens = "rj.load(workdir, step=1100) opens the train form of that step"
    assert f"last step, 1,200\n--mode=fuse --step=1100 fuses the best; {opens}" in text
    again = "the report describes the last step, 1,200; the fused weights are of step 1,100"
    fused_again = f"{again}\n{opens}"
    assert fused_again in summary(few | changes, fused_step=1100)
    assert "best" not in summary(few | {"best": {"step": 1200, "top1": 1.0}})
    assert "30.0 s in the last start (first step after 7.2 s); 2:05:00 over all 3 starts" in text
    assert "the training loss includes label smoothing 0.1; the loss above does not" in text


def test_summary_shows_the_rounding_errors_of_deployment():
    exact = REPORT["fusion"]
    agreement = {name: exact[name] for name in ("top1_agreement", "logit_kl")}
    same = {"dtype": "float32", "relative_error": 3.1e-7, **agreement}
    assert summary(REPORT | {"fusion": exact | {"deployed": same}}) == summary(REPORT)
    rounded = {"dtype": "bfloat16", "relative_error": 0.029, "top1_agreement": 0.9444}
    lines = summary(REPORT | {"fusion": exact | {"deployed": rounded | {"logit_kl": 2.2}}})
    figures = "relative error 2.9e-02, top-1 agreement 94.44%, logit KL 2.2e+00"
    assert f"\nfusion as deployed (bfloat16): {figures}\n" in lines


def test_summary_of_part_of_a_run():
    lines = summary({"model": "m", "top1": {"fused": 0.5}}, fused_step=1).splitlines()
    assert [line.split() for line in lines] == [
        ["m", "train", "form", "fused"],
        ["top-1", "-", "50.00%"],
    ]
