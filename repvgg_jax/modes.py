"""What `main.py --mode=...` does: the library's parts in the order that a user wants them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import Array
from ml_collections import ConfigDict

from repvgg_jax import checkpoint
from repvgg_jax.bench import count_macs, count_parameters
from repvgg_jax.config import config_hash, make_source, make_transform, read_config
from repvgg_jax.data import eval_batches
from repvgg_jax.errors import UsageError
from repvgg_jax.fuse import FusionReport, fuse, verify
from repvgg_jax.monitor import summary, write_json
from repvgg_jax.sharding import check_divides, make_mesh
from repvgg_jax.train import as_images, evaluation, train


def run_train(config: ConfigDict | None, workdir: Path) -> None:
    """The whole way: train, evaluate, fuse, prove the forms equal, evaluate again, report."""
    if config is None:
        raise UsageError("--mode=train needs --config, such as --config configs/quickstart.py")
    started = time.monotonic()
    state, examples_per_second = train(config, workdir)
    net, variables = state.net, state.variables
    plain, fused, fusion = _fuse(config, net, variables)
    checkpoint.save_fused(workdir, fused)
    test = evaluation(config, make_mesh())
    metrics = {"train_form": test(net, variables), "fused": test(plain, fused)}
    forms = {"train_form": (net, variables), "fused": (plain, fused)}
    report = {
        "model": f"{config.model.name}, block {config.model.block}",
        "config_hash": config_hash(config),
        "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
        "steps": int(state.step),
        "examples_per_second": examples_per_second,
        **{name: _each(metrics, name) for name in ("top1", "top5", "loss")},
        "eval_count": metrics["fused"]["count"],
        "fusion": {
            "max_relative_error": fusion.max_relative_error,
            "top1_agreement": fusion.top1_agreement,
            "logit_kl": fusion.logit_kl,
        },
        "params": {form: count_parameters(tree) for form, (_, tree) in forms.items()},
        "macs": {
            form: count_macs(module, tree, config.data.image_size)
            for form, (module, tree) in forms.items()
        },
        "wall_seconds": time.monotonic() - started,
    }
    write_json(workdir / "report.json", report)
    _say(summary(report))


def run_eval(config: ConfigDict | None, workdir: Path) -> None:
    """Evaluate a run's latest checkpoint, and its fused weights where it has some."""
    config = config or read_config(workdir)
    mesh = make_mesh()
    check_divides("train.eval_batch_size", config.train.eval_batch_size, mesh)
    test = evaluation(config, mesh)
    forms = {"train form": checkpoint.load(workdir)}
    if checkpoint.has_fused(workdir):
        forms["fused"] = checkpoint.load(workdir, fused=True)
    for form, (net, variables) in forms.items():
        result = test(net, variables)
        _say(
            f"{form:<12} top-1 {result['top1']:.2%}  top-5 {result['top5']:.2%}  "
            f"loss {result['loss']:.4f}  {result['count']:,} images"
        )


def run_fuse(config: ConfigDict | None, workdir: Path) -> None:
    """Fuse a run's latest checkpoint, prove the forms equal, and write the fused pair."""
    config = config or read_config(workdir)
    _, fused, fusion = _fuse(config, *checkpoint.load(workdir))
    checkpoint.save_fused(workdir, fused)
    _say(f"{fusion}\nrepvgg_jax.load({str(workdir)!r}, fused=True) opens the fused pair")


MODES: dict[str, Callable[[ConfigDict | None, Path], None]] = {
    "train": run_train,
    "eval": run_eval,
    "fuse": run_fuse,
}


def _fuse(
    config: ConfigDict, net: nn.Module, variables: Any
) -> tuple[nn.Module, Any, FusionReport]:
    """The fused pair, and its proof on evaluation images."""
    plain, fused = fuse(net, variables)
    return plain, fused, verify(net, variables, _verify_images(config), (plain, fused))


def _verify_images(config: ConfigDict) -> Array:
    """The first `fuse.verify_images` of the evaluation split, as the net takes them."""
    batches = eval_batches(
        make_source(config, "test"),
        make_transform(config),
        config.train.eval_batch_size,
        workers=config.data.workers,
    )
    rows: list[np.ndarray] = []
    for batch in batches:
        rows.extend(batch["image"][batch["mask"] > 0])
        if len(rows) >= config.fuse.verify_images:
            break
    images = np.stack(rows[: config.fuse.verify_images])
    return as_images(jax.numpy.asarray(images), tuple(config.data.mean), tuple(config.data.std))


def _each(metrics: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    return {form: values[name] for form, values in metrics.items()}


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text)
