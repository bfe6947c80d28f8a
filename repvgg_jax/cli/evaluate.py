"""`--mode=eval`."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from repvgg_jax.checkpoint import load
from repvgg_jax.checkpoint.fused import fused_step, has_fused
from repvgg_jax.cli.common import say
from repvgg_jax.config.fields import check_values
from repvgg_jax.config.workdir import read_config
from repvgg_jax.runtime.mesh import check_divides, make_mesh
from repvgg_jax.training.evaluation import Evaluation


def run_eval(config: ConfigDict | None, workdir: Path) -> None:
    """Evaluate a run's latest checkpoint, and its fused weights where it has some."""
    evaluation = _evaluation(config, workdir)
    *trained, latest = load.load_trained(workdir)
    forms = {"train form": tuple(trained)}
    if has_fused(workdir):
        pair, step = load.load(workdir, fused=True), fused_step(workdir)
        forms["fused" if step == latest else f"fused at step {step}, not {latest}"] = pair
    for form, (net, variables) in forms.items():
        result = evaluation(net, variables)
        say(
            f"{form:<12} top-1 {result['top1']:.2%}  top-5 {result['top5']:.2%}  "
            f"loss {result['loss']:.4f}  {result['count']:,} images"
        )


def _evaluation(config: ConfigDict | None, workdir: Path) -> Evaluation:
    """Of the config given, or else of the one that the run was started with."""
    config = config or read_config(workdir)
    check_values(config)
    mesh = make_mesh()  # of the devices here, whatever the run was trained on
    check_divides("train.eval_batch_size", config.train.eval_batch_size, mesh)
    return Evaluation(config, mesh)
