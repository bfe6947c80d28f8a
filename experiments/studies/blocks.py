"""Measures all blocks in the same way.

  python -m experiments.studies.blocks [counts] [cost] [digits] [table]

counts: parameters of RepVGG-B0 with the block, and the fusion error with randomized statistics.
cost: the time of a training step relative to RepVGG's block, interleaved in one run.
digits: the quickstart's training with the block, including the fused net.
table: the table in docs/results/blocks.md, from docs/results/blocks.json. Default: all four.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import repvgg_jax as rj
from configs import quickstart
from experiments.studies.pages import DOCS, write_section
from experiments.sweeps.flags import Parser, run_command
from repvgg_jax.bench.counting import count_parameters
from repvgg_jax.blocks.registry import BLOCKS
from repvgg_jax.cli import train
from repvgg_jax.nets import abstract
from repvgg_jax.optim import sgd
from repvgg_jax.runtime.files import read_json, write_json
from repvgg_jax.runtime.mesh import make_mesh, shard_batch
from repvgg_jax.training.state import init_state
from repvgg_jax.training.step import train_step

# Those that fusion changes.
NAMES = [name for name in BLOCKS if name not in ("conv", "fused")]
PAPERS = {
    "repvgg": "RepVGG, 2101.03697",
    "plain": "convolution and BatchNorm only",
    "acb": "ACNet, 1908.03930",
    "dbb": "Diverse Branch Block, 2103.13425",
    "orepa": "OREPA, 2204.00826",
    "mobileone": "MobileOne, 2206.04040 (k = 4)",
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
    """Returns B0's parameters in both forms, and the fusion error of a small net of the block."""
    net = rj.create("repvgg_b0", block=name)
    found = {
        "params": count_parameters(abstract(net)),
        "params_fused": count_parameters(abstract(net.clone(block="fused"))),
        "fusion_error": None,
    }
    small = rj.create("repvgg_b0", block=name, **{**SMALL, "depths": (1, 1, 1, 3, 1)})
    images = np.random.default_rng(0).standard_normal((16, 32, 32, 3), np.float32)
    if small.fusable:
        report = rj.verify(small, rj.randomize(abstract(small), jax.random.key(1)), images)
        found["fusion_error"] = report.max_relative_error
    return found


def stepper(name: str, batch: Any) -> Callable[[], float]:
    """Returns a function that takes a training step of a small net and returns its seconds."""
    net = rj.create("repvgg_b0", block=name, **SMALL)
    state = [init_state(net, sgd.sgd(lambda step: 0.01), make_mesh(), jax.random.key(0))]
    step = jax.jit(train_step, donate_argnums=0)

    def run() -> float:
        begin = time.perf_counter()
        state[0], metrics = step(state[0], batch, jax.random.key(1))
        jax.block_until_ready(metrics)
        return time.perf_counter() - begin

    run()
    return run


def cost(name: str, repeats: int = 5) -> dict[str, Any]:
    """Returns the median ratio of the block's step time to RepVGG's, over interleaved pairs."""
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
    """Trains the quickstart with the block; returns its top-1 and fusion report."""
    config = quickstart.get_config()
    config.model.block = name
    with tempfile.TemporaryDirectory() as folder:
        train.run_train(config, Path(folder) / "run")
        report = read_json(Path(folder) / "run" / "report.json", "run it again")
    return {"top1": report["top1"], "fusion": report.get("fusion")}


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the lines of the table in docs/results/blocks.md."""
    lines = [
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
    return lines


def cell(value: Any, form: str) -> str:
    """Formats a number, or a dash for None."""
    return "-" if value is None else form.format(value)


def main() -> None:
    """Runs the selected measurements, and stores each result immediately."""
    parser = Parser(__doc__)
    parser.add_argument(
        "what", nargs="*", default=["counts", "cost", "digits", "table"], help="see above"
    )
    parser.add_argument("--blocks", nargs="*", default=NAMES, choices=NAMES, help="all by default")
    arguments = parser.parse_args()
    path = DOCS / "blocks.json"
    rows = read_json(path, "restore it from git") if path.exists() else {}
    measures = {"counts": counts, "cost": cost, "digits": digits}
    for what in arguments.what:
        for name in arguments.blocks if what in measures else []:
            rows.setdefault(name, {}).update(measures[what](name))
            write_json(path, rows)
            print(name, rows[name], flush=True)
    if "table" in arguments.what:
        write_section(DOCS / "blocks.md", "table", table(rows))


if __name__ == "__main__":
    sys.exit(run_command(main))
