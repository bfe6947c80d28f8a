"""Every block measured alike.

  python -m experiments.studies.blocks [counts] [cost] [digits] [table]


counts: parameters of RepVGG-B0 with the block, and the fusion error with randomised statistics.
cost: a training step's time over that of RepVGG's block, both timed in turn in one run.
digits: the quickstart's training with the block, through to the fused net.
table: docs/results/blocks.md of all that docs/results/blocks.json holds. Without arguments, all four.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import repvgg_jax as rj
from configs import quickstart
from repvgg_jax.bench.counting import count_parameters
from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.blocks.registry import BLOCKS
from repvgg_jax.cli import train
from repvgg_jax.optim import sgd
from repvgg_jax.runtime.compilation import jit
from repvgg_jax.runtime.files import replace_text, write_json
from repvgg_jax.runtime.mesh import make_mesh, shard_batch
from repvgg_jax.training.step import init_state, train_step
from tests.support.variables import random_variables

DOCS = Path(__file__).parents[2] / "docs/results"
NAMES = [name for name in BLOCKS if name != "fused"]
PAPERS = {
    "repvgg": "RepVGG, 2101.03697",
    "plain": "conv and BatchNorm alone",
    "acb": "ACNet, 1908.03930",
    "dbb": "Diverse Branch Block, 2103.13425",
    "orepa": "OREPA, 2204.00826",
    "mobileone": "MobileOne, 2206.04040 (4 copies)",
    "qarepvgg": "QARepVGG, 2212.01593",
    "dirac": "DiracNet, 1706.00388",
    "trivial": "RepVGG, Table 7",
    "doconv": "DO-Conv, 2006.12030",
    "expandnet": "ExpandNet-CL, 1811.10495",
    "expandnet_ck": "ExpandNet-CK, 1811.10495",
    "csla": "RepOptimizer, 2205.15242",
    "identity_without_bn": "RepVGG, Table 7",
    "post_addition_bn": "RepVGG, Table 7",
    "relu_in_branch": "RepVGG, Table 7",
}
SMALL = {
    "num_classes": 10,
    "widths": (16, 32, 64, 128, 256),
    "depths": (1, 2, 4, 8, 1),
    "strides": (1, 2, 2, 2, 2),
}


def counts(name: str) -> dict[str, Any]:
    """B0's parameters in both forms, and the fusion error of a small net of the block."""
    net = rj.create("repvgg_b0", block=name)
    shapes = jax.eval_shape(lambda key: rj.init(net, key), jax.random.key(0))
    plain = net.clone(block=FusedConv)
    fused = jax.eval_shape(lambda key: rj.init(plain, key), jax.random.key(0))
    found = {"params": count_parameters(shapes), "params_fused": count_parameters(fused)}
    small = rj.create("repvgg_b0", block=name, **{**SMALL, "depths": (1, 1, 1, 3, 1)})
    images = np.random.default_rng(0).standard_normal((16, 32, 32, 3), np.float32)
    try:
        report = rj.verify(small, random_variables(small, 1), images)
        found["fusion_error"] = report.max_relative_error
    except rj.UsageError:
        found["fusion_error"] = None
    return found


def stepper(name: str, batch: Any) -> Callable[[], float]:
    """A call that takes a training step of a small net on the batch, and says its seconds."""
    net = rj.create("repvgg_b0", block=name, **SMALL)
    held = [init_state(net, sgd.sgd(lambda step: 0.01), make_mesh(), jax.random.key(0))]
    step = jit(train_step, donate_argnums=0)

    def run() -> float:
        begin = time.perf_counter()
        held[0], metrics = step(held[0], batch, jax.random.key(1))
        jax.block_until_ready(metrics)
        return time.perf_counter() - begin

    run()
    return run


def cost(name: str, repeats: int = 5) -> dict[str, Any]:
    """Median over pairs of steps taken in turn of the block's time over RepVGG's."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((64, 32, 32, 3), np.float32),
        "label": rng.integers(0, 10, 64).astype(np.int32),
    }
    batch = shard_batch(batch, make_mesh())
    own, other = stepper(name, batch), stepper("repvgg", batch)
    pairs = [(own(), other()) for _ in range(repeats)]
    return {"step_cost": statistics.median(a / b for a, b in pairs)}


def digits(name: str) -> dict[str, Any]:
    """The quickstart's run with the block."""
    config = quickstart.get_config()
    config.model.block = name
    with tempfile.TemporaryDirectory() as folder:
        train.run_train(config, Path(folder) / "run")
        report = json.loads((Path(folder) / "run" / "report.json").read_text())
    return {"top1": report["top1"], "fusion": report.get("fusion")}


def table(rows: dict[str, dict[str, Any]], device: str) -> str:
    """docs/results/blocks.md."""
    lines = [
        "# Blocks",
        "",
        "Each of these is a word: `--config.model.block=dbb`, or `block='dbb'` of `rj.create`. All "
        "but `relu_in_branch` are affine in evaluation mode, so each fuses to one convolution; "
        "`tests/test_blocks.py` holds every entry of the registry to that over strides, groups, "
        "kernel sizes, dilations and odd maps. How to add one: "
        "[add a block](../guides/add_a_block.md).",
        "",
        "| block | paper | B0, train form | B0, fused | fusion error | step | digits, train form "
        "| fused | agreement |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in NAMES:
        row = rows.get(name, {})
        top1, fusion = row.get("top1") or {}, row.get("fusion") or {}
        cells = [
            f"`{name}`",
            PAPERS.get(name, "-"),
            cell(row.get("params"), "{:,}"),
            cell(row.get("params_fused") if row.get("fusion_error") is not None else None, "{:,}"),
            cell(row.get("fusion_error"), "{:.1e}"),
            cell(row.get("step_cost"), "{:.2f}"),
            cell(top1.get("train_form"), "{:.2%}"),
            cell(top1.get("fused"), "{:.2%}"),
            cell(fusion.get("top1_agreement"), "{:.0%}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Parameters: RepVGG-B0 with 1000 classes. Fusion error: the largest relative error of a "
        "block or the logits, randomised statistics, float32. Step: time of a training step over "
        "that of `repvgg`, both taken in turn in one run (widths 16 to 256, 16 layers, 64 images "
        "of 32x32, float32; the median of five pairs). Digits: test top-1 after the quickstart's "
        "40 epochs, one seed, so that differences of a percent mean nothing.",
        "",
        f"Measured on {device}, shared with other work, by `python -m experiments.studies.blocks`.",
        "",
    ]
    return "\n".join(lines)


def cell(value: Any, form: str) -> str:
    """A formatted number, or a dash."""
    return "-" if value is None else form.format(value)


def main() -> None:
    """Measure what is asked for, keeping each result as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["counts", "cost", "digits", "table"])
    parser.add_argument("--blocks", nargs="*", default=NAMES, choices=NAMES)
    arguments = parser.parse_args()
    path = DOCS / "blocks.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    measures = {"counts": counts, "cost": cost, "digits": digits}
    for what in arguments.what:
        for name in arguments.blocks if what in measures else []:
            rows.setdefault(name, {}).update(measures[what](name))
            write_json(path, rows)
            print(name, rows[name], flush=True)
    if "table" in arguments.what:
        kind = jax.devices()[0].device_kind
        device = f"{kind} x{jax.device_count()} ({os.cpu_count()} host cores)"
        replace_text(DOCS / "blocks.md", table(rows, device))


if __name__ == "__main__":
    main()
