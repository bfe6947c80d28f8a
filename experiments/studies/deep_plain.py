"""Compares initializations of deep plain nets: `python -m experiments.studies.deep_plain [--fast]`.

Trains the variants of configs/deep_plain.py as `main.py` does, measures how long programs of 10 to
10,000 layers take to compile, and writes docs/results/deep_plain.md and its curves.
"""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import repvgg_jax as rj
from configs import deep_plain
from experiments.studies.pages import DOCS, device_name, write_section
from experiments.sweeps.flags import Parser, path_type, run_command
from repvgg_jax.config.build import build
from repvgg_jax.errors import RunError
from repvgg_jax.nets import abstract
from repvgg_jax.optim import sgd
from repvgg_jax.training.metrics import METRICS_FILE, read_metrics
from repvgg_jax.training.state import TrainState
from repvgg_jax.training.step import train_step
from repvgg_jax.training.train import train

LABELS = {
    "delta_orthogonal": "1000 layers, tanh, delta-orthogonal",
    "default": "1000 layers, tanh, default (fan-in uniform)",
    "leaky_relu": "100 layers, LeakyReLU, delta-orthogonal, max-norm 1.36",
}


def fit(variant: str, workdir: Path, steps: int | None) -> list[dict[str, Any]]:
    """Trains the variant, or resumes an earlier call's run, and returns its metrics."""
    config = deep_plain.get_config(variant)
    if steps:
        config.train.update(steps=steps, eval_every=steps)
        config.optim.warmup_epochs = 0.0
    try:
        train(build(config), workdir / variant)
    except RunError as error:  # a net that diverges is a result too
        print(f"{variant}: {error}")
    return read_metrics(workdir / variant / METRICS_FILE)


def compile_seconds(depth: int) -> tuple[float, float]:
    """Returns seconds to compile a training step and the initialization; nothing is run."""
    net = rj.create("deep_plain", num_classes=10, depth=depth)
    tx, params = sgd.sgd(lambda step: jnp.float32(0.01)), abstract(net)["params"]
    state = TrainState(jnp.int32(0), params, {}, jax.eval_shape(tx.init, params), None, net, tx)
    batch = {
        "image": jax.ShapeDtypeStruct((64, 8, 8, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((64,), jnp.int32),
    }
    begin = time.perf_counter()
    jax.jit(train_step, donate_argnums=0).lower(state, batch, jax.random.key(0)).compile()
    step = time.perf_counter() - begin
    begin = time.perf_counter()
    jax.jit(lambda key: rj.init(net, key, 8)).lower(jax.random.key(0)).compile()
    return step, time.perf_counter() - begin


def draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draws training loss and test top-1 of every variant, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (loss, top1) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    styles = zip(curves.items(), ("C0", "C1", "C2"), ("-", "--", "-."), strict=False)
    for (variant, rows), color, style in styles:
        training = [row for row in rows if row["kind"] == "train"]
        tests = [row for row in rows if row["kind"] == "eval"]
        shared = {"color": color, "linestyle": style, "label": LABELS[variant]}
        loss.plot([r["step"] for r in training], [r["loss"] for r in training], **shared)
        top1.plot(
            [r["step"] for r in tests], [100 * r["top1"] for r in tests], marker="o", **shared
        )
    loss.set(xlabel="step", ylabel="training loss (nats)", ylim=(0, 3))
    top1.set(xlabel="step", ylabel="test top-1 (%)", ylim=(0, 100))
    top1.axhline(10, color="gray", linewidth=0.8, linestyle=":")
    top1.text(0.99, 0.11, "chance", color="gray", ha="right", transform=top1.transAxes)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)


def curve_lines(curves: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Returns the table of test top-1 and training loss."""
    lines = [
        "| digits, `configs/deep_plain.py` | steps | test top-1 | training loss |",
        "|---|--:|--:|--:|",
    ]
    for variant, rows in curves.items():
        tests = [f"{row['step']} | {row['top1']:.2%}" for row in rows if row["kind"] == "eval"]
        losses = [f"{row['loss']:.3f}" for row in rows if row["kind"] == "train"]
        test = tests[-1] if tests else "- | diverged"
        loss = losses[-1] if losses else "-"
        lines.append(f"| {LABELS[variant]} | {test} | {loss} |")
    return lines


def compile_lines(compiled: dict[int, tuple[float, float]]) -> list[str]:
    """Returns the table of compile times, and the device."""
    return [
        "| layers | training step, seconds to compile | initialization, seconds to compile |",
        "|--:|--:|--:|",
        *(f"| {depth:,} | {step:.1f} | {init:.1f} |" for depth, (step, init) in compiled.items()),
        "",
        f"Measured on {device_name()} by `python -m experiments.studies.deep_plain`, one seed.",
    ]


def main() -> None:
    """Trains, compiles, and writes the page."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--workdir", type=path_type, default=Path("runs/deep_plain"), help="folder to train in"
    )
    parser.add_argument("--docs", type=path_type, default=DOCS, help="folder of the page")
    parser.add_argument("--fast", action="store_true", help="run a few steps only, as a test")
    arguments = parser.parse_args()
    steps = 2 if arguments.fast else None
    compiled = {}
    for depth in (10, 100, 1_000, 10_000):
        compiled[depth] = compile_seconds(depth)
        print(depth, compiled[depth], flush=True)
    curves = {variant: fit(variant, arguments.workdir, steps) for variant in LABELS}
    draw(curves, arguments.docs / "deep_plain.png")
    page = arguments.docs / "deep_plain.md"
    write_section(page, "curves", curve_lines(curves))
    write_section(page, "compile times", compile_lines(compiled))


if __name__ == "__main__":
    sys.exit(run_command(main))
