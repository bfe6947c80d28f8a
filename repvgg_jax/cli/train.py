"""What `main.py --mode=...` does: the library's parts in the order that a user wants them."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repvgg_jax.bench.counting import count_macs, count_parameters
from repvgg_jax.cli.common import model_name, say
from repvgg_jax.cli.fuse import _fuse, _refusal
from repvgg_jax.config.build import make_net
from repvgg_jax.config.fields import check_values, config_hash
from repvgg_jax.errors import Stopped, UsageError
from repvgg_jax.runtime.files import write_json
from repvgg_jax.runtime.mesh import local_copy
from repvgg_jax.runtime.processes import primary
from repvgg_jax.runtime.signals import Stopping
from repvgg_jax.training.summary import summary
from repvgg_jax.training.train import train


def run_train(config: ConfigDict | None, workdir: Path) -> None:
    """The whole way: train, evaluate, fuse, prove the forms equal, evaluate again, report."""
    if config is None:
        raise UsageError("--mode=train needs --config, such as --config configs/quickstart.py")
    check_values(config)
    with Stopping(config.train.deadline) as stopping:
        _train_and_fuse(config, workdir, stopping)


def _train_and_fuse(config: ConfigDict, workdir: Path, stopping: Stopping) -> None:
    started, refusal = time.monotonic(), _refusal(make_net(config))
    trained = train(config, workdir, stopping)
    net, evaluation = trained.state.net, trained.evaluation
    step = int(trained.state.step)
    mesh = evaluation.mesh
    after_batch = partial(_check, stopping, mesh)
    variables = local_copy(trained.state.variables, mesh)
    forms = {"train_form": (net, variables)}
    metrics = {"train_form": trained.metrics or evaluation(net, variables, after_batch)}
    proof = {}
    if refusal:
        say(refusal)
    else:
        plain, fused, fusion = _fuse(config, workdir, evaluation, net, variables, step)
        forms["fused"] = plain, fused
        metrics["fused"] = evaluation(plain, fused, after_batch)
        proof["fusion"] = {
            "max_relative_error": fusion.max_relative_error,
            "top1_agreement": fusion.top1_agreement,
            "logit_kl": fusion.logit_kl,
        }
    size = config.data.eval_image_size or config.data.image_size
    report = {
        "model": model_name(config),
        "config_hash": config_hash(config),
        "device": f"{jax.devices()[0].device_kind} x{mesh.size}",
        "steps": step,
        "examples_per_second": trained.examples_per_second
        or _earlier(workdir, "examples_per_second"),
        "waiting_for_data": trained.waiting
        if trained.waiting is not None
        else _earlier(workdir, "waiting_for_data"),
        "first_step_seconds": trained.startup.seconds or _earlier(workdir, "first_step_seconds"),
        "compile_seconds": trained.startup.compile_seconds or _earlier(workdir, "compile_seconds"),
        **{name: _each(metrics, name) for name in ("top1", "top5", "loss")},
        "eval_count": metrics["train_form"]["count"],
        "skipped": trained.skipped,
        **proof,
        "params": {form: count_parameters(tree) for form, (_, tree) in forms.items()},
        "macs": {form: count_macs(module, tree, size) for form, (module, tree) in forms.items()},
        "wall_seconds": trained.seconds_before + time.monotonic() - started,
    }
    if primary():
        write_json(workdir / "report.json", report)
        print(summary(report))


def _check(stopping: Stopping, mesh: Mesh) -> None:
    """Raises Stopped, saying what is saved, where it is time to stop after training."""
    try:
        stopping.check(mesh)
    except Stopped as stop:
        raise Stopped(
            f"stopped by {stop} after the last step, which is saved; "
            "the same command goes on from there"
        ) from None


def _earlier(workdir: Path, field: str) -> Any:
    """A field of the report that a finished run already has; None where there is none."""
    path = workdir / "report.json"
    return json.loads(path.read_text()).get(field) if path.exists() else None


def _each(metrics: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    return {form: values[name] for form, values in metrics.items()}
