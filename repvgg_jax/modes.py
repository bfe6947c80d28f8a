"""What `main.py --mode=...` does: the library's parts in the order that a user wants them."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repvgg_jax import ahead, checkpoint
from repvgg_jax.bench import count_macs, count_parameters
from repvgg_jax.certificate import certify
from repvgg_jax.config import check_workdir, make_net, make_workdir, read_config
from repvgg_jax.config_fields import check_values, config_hash
from repvgg_jax.data.prepare import describe, find_prepared, prepare
from repvgg_jax.errors import RunError, Stopped, UsageError
from repvgg_jax.evaluation import Evaluation
from repvgg_jax.fuse import FusionReport, fuse, verify
from repvgg_jax.fused_weights import fused_step, has_fused, save_fused
from repvgg_jax.nets import init
from repvgg_jax.records import write_json
from repvgg_jax.report import summary
from repvgg_jax.runtime import primary
from repvgg_jax.sharding import check_divides, local_copy, make_mesh, replicate
from repvgg_jax.stopping import Stopping
from repvgg_jax.train import train


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
        _say(refusal)
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
        "model": _model(config),
        "config_hash": config_hash(config),
        "device": f"{jax.devices()[0].device_kind} x{mesh.size}",
        "steps": step,
        "examples_per_second": trained.examples_per_second
        or _earlier(workdir, "examples_per_second"),
        "waiting_for_data": trained.waiting
        if trained.waiting is not None
        else _earlier(workdir, "waiting_for_data"),
        "first_step_seconds": trained.start.seconds or _earlier(workdir, "first_step_seconds"),
        "compile_seconds": trained.start.compiling or _earlier(workdir, "compile_seconds"),
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


def run_eval(config: ConfigDict | None, workdir: Path) -> None:
    """Evaluate a run's latest checkpoint, and its fused weights where it has some."""
    evaluation = _evaluation(config, workdir)
    *trained, latest = checkpoint.load_trained(workdir)
    forms = {"train form": tuple(trained)}
    if has_fused(workdir):
        pair, step = checkpoint.load(workdir, fused=True), fused_step(workdir)
        forms["fused" if step == latest else f"fused at step {step}, not {latest}"] = pair
    for form, (net, variables) in forms.items():
        result = evaluation(net, variables)
        _say(
            f"{form:<12} top-1 {result['top1']:.2%}  top-5 {result['top5']:.2%}  "
            f"loss {result['loss']:.4f}  {result['count']:,} images"
        )


def run_fuse(config: ConfigDict | None, workdir: Path) -> None:
    """Fuse a run's latest checkpoint, prove the forms equal, and write the fused pair."""
    config = config or read_config(workdir)
    evaluation = _evaluation(config, workdir)
    net, variables, step = checkpoint.load_trained(workdir)
    *_, fusion = _fuse(config, workdir, evaluation, net, variables, step)
    _say(f"{fusion}\nrepvgg_jax.load({str(workdir)!r}, fused=True) opens the fused pair")


def run_prepare(config: ConfigDict | None) -> None:
    """Write the data set that the config names from its official archives, once for all runs.

    Raises:
      UsageError: without a config, for data that need no preparing, and whatever `prepare` raises.
    """
    if config is None:
        raise UsageError("--mode=prepare needs --config, such as --config configs/cifar10.py")
    data = config.data
    if data.source != "tfds":
        raise UsageError(
            f"data.source={data.source} needs no preparing; that is for --config.data.source=tfds"
        )
    there = find_prepared(data.name, data.data_dir)
    path = there or prepare(data.name, data.data_dir, data.manual_dir)
    # Not by _say, which starts the devices.
    print(
        f"{data.name} {'is already' if there else 'is now'} prepared in {path}: {describe(path)}; "
        "the same command without --mode=prepare trains on it"
    )


def run_compile(config: ConfigDict | None, topology: str | None, workdir: Path | None) -> None:
    """Compile a config's training step for devices that need not be there, and say its cost."""
    if config is None or topology is None:
        raise UsageError(
            "--mode=compile needs --config and --topology, such as --config configs/b1.py "
            "--topology=v5e:4x4"
        )
    if workdir is not None:
        check_workdir(config, workdir)
    ahead.prepare_compiler(topology)
    devices, started = ahead.topology_devices(topology), time.monotonic()
    cost = ahead.describe(ahead.compile_step(config, devices))
    seconds, images = time.monotonic() - started, config.train.batch_size
    title = (
        f"{_model(config)} on {len(devices)} x {devices[0].device_kind} ({topology}), "
        f"{images:,} images a step, {images // len(devices):,} a device"
    )
    print(f"{ahead.table(cost, title, ahead.capacity(devices[0]))}\ncompiled in {seconds:.0f} s")
    if workdir is not None:
        make_workdir(config, workdir)
        about = {"model": _model(config), "topology": topology, "devices": len(devices)}
        about |= {"batch_size": images, "compile_seconds": seconds, "memory": cost.memory}
        write_json(workdir / "compile.json", about | dataclasses.asdict(cost))


MODES: dict[str, Callable[[ConfigDict | None, Path], None]] = {
    "train": run_train,
    "eval": run_eval,
    "fuse": run_fuse,
}


def _model(config: ConfigDict) -> str:
    return ", block ".join(filter(None, (config.model.name, config.model.block)))


def _refusal(net: nn.Module) -> str | None:
    """Why the net's block cannot be fused, known before it is trained; None where it can."""
    try:
        jax.eval_shape(lambda key: fuse(net, init(net, key))[1], jax.random.key(0))
    except UsageError as error:
        return str(error)
    return None


def _fuse(
    config: ConfigDict,
    workdir: Path,
    evaluation: Evaluation,
    net: nn.Module,
    variables: Any,
    step: int,
) -> tuple[nn.Module, Any, FusionReport]:
    """Fuse, verify on real images, and write the fused weights with their certificate."""
    plain, fused = fuse(net, variables)
    images = evaluation.images(config.fuse.verify_images)
    fusion = verify(net, variables, images, (plain, fused))
    if not fusion.max_relative_error <= config.fuse.tolerance:
        raise RunError(
            "nothing was written, since the fused form is not the train form: relative error "
            f"{fusion.exact.relative_error:.1e} of the logits and, the worst of the blocks, "
            f"{fusion.blocks[fusion.worst_block]:.1e} of {fusion.worst_block}, with "
            f"fuse.tolerance={config.fuse.tolerance:g}"
        )
    certificate = certify(
        fusion,
        fused,
        images=len(images),
        step=step,
        config_hash=config_hash(read_config(workdir)),
    )
    save_fused(workdir, replicate(fused, evaluation.mesh), certificate)
    return plain, fused, fusion


def _evaluation(config: ConfigDict | None, workdir: Path) -> Evaluation:
    """Of the config given, or else of the one that the run was started with."""
    config = config or read_config(workdir)
    check_values(config)
    mesh = make_mesh()  # of the devices here, whatever the run was trained on
    check_divides("train.eval_batch_size", config.train.eval_batch_size, mesh)
    return Evaluation(config, mesh)


def _earlier(workdir: Path, field: str) -> Any:
    """A field of the report that a finished run already has; None where there is none."""
    path = workdir / "report.json"
    return json.loads(path.read_text()).get(field) if path.exists() else None


def _each(metrics: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    return {form: values[name] for form, values in metrics.items()}


def _say(text: str) -> None:
    if primary():
        print(text)
