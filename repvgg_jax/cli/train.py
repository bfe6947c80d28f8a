"""`--mode=train`: trains, evaluates, fuses, verifies and reports."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repvgg_jax.bench.counting import count_macs, count_parameters
from repvgg_jax.checkpoint.fused import fused_step
from repvgg_jax.checkpoint.manager import steps
from repvgg_jax.cli.fuse import fuse_and_save
from repvgg_jax.cli.opening import opening
from repvgg_jax.cli.report import is_finished, read_report, write_report
from repvgg_jax.config.build import Experiment, build, check_config
from repvgg_jax.config.classes import check_classes
from repvgg_jax.config.describe import model_name
from repvgg_jax.config.fields import config_hash, to_json
from repvgg_jax.config.resolve import resolve
from repvgg_jax.config.workdir import (
    changed_fields,
    check_workdir,
    check_writable,
    has_checkpoints,
    lock_run,
    read_config,
)
from repvgg_jax.data.sources.folder_layout import class_folders
from repvgg_jax.errors import Stopped, UsageError
from repvgg_jax.fusion.verify import FusionReport
from repvgg_jax.layers.conv import Dtype
from repvgg_jax.ops.batch_norm import accumulation_dtype
from repvgg_jax.runtime.compilation import StartupTimer
from repvgg_jax.runtime.lock import check_unlocked
from repvgg_jax.runtime.mesh import local_copy
from repvgg_jax.runtime.processes import (
    all_processes,
    inform_once,
    primary,
    print_once,
    speaks,
    warn_once,
)
from repvgg_jax.runtime.signals import Stopping
from repvgg_jax.training.confusion import CONFUSION_PICTURE, confusion_fields, show_confusion
from repvgg_jax.training.environment import environment
from repvgg_jax.training.evaluation import scalars
from repvgg_jax.training.history import environments, read_history, record_end
from repvgg_jax.training.metrics import METRICS_FILE, best_evaluation
from repvgg_jax.training.summary import summary, training_loss_terms
from repvgg_jax.training.train import TrainResult, train


def run_train(config: ConfigDict, workdir: Path) -> None:
    """Trains or resumes a run, evaluates, fuses and verifies it, and writes `report.json`.

    If the run is finished, prints its report without opening the data. If its class folders still
    exist, their names must be the run's classes.

    Raises:
      UsageError: if the config cannot run, or the workdir belongs to another config.
      HeldError: if another process trains in the workdir.
      RunError: if a loss is not finite, something cannot be written, or verification fails.
      Stopped: if a stop was requested; the same call resumes the run.
    """
    check_unlocked(workdir)
    config = resolve(config, workdir)
    check_config(config)  # first: `check_workdir` would report a typo as another config
    check_workdir(config, workdir)
    earlier = read_report(workdir)
    if all_processes(is_finished(earlier, config, workdir)):
        if config.data.source == "folder" and (found := class_folders(config.data.data_dir)):
            check_classes(workdir, found, config.data.data_dir, to_train=True)
        inform_once(
            f"{workdir} is finished; this is its report (--mode=eval evaluates again, and another "
            "--workdir starts another run)"
        )
        _say_what_changed(config, workdir)
        if speaks():
            _print_report(earlier, None, _step_of_fused(workdir))
        return
    check_writable(workdir)
    resumed = bool(steps(workdir))
    inform_once(f"{'resuming' if resumed else 'training'} {model_name(config)} in {workdir}")
    if config.init_from is not None and not resumed:
        read_config(config.init_from)  # raises if there is no run
    if has_checkpoints(workdir):
        _say_what_changed(config, workdir)
    with Stopping(config.train.deadline) as stopping:
        startup = StartupTimer()
        # The classes matter only if there is a checkpoint to resume from.
        experiment = build(config, run=workdir if resumed else None)
        inform_once(f"{opening(experiment, environment(experiment))}\nloading and compiling ...")
        with lock_run(workdir):
            report = _train_and_fuse(config, experiment, workdir, stopping, startup, earlier)
            if primary():
                record_end(workdir, report["steps"], report["wall_seconds"])
                report |= _starts(workdir)
                report["best"] = best_evaluation(workdir / METRICS_FILE, steps(workdir))
                write_report(workdir, report)
                _print_report(report, workdir / CONFUSION_PICTURE)


def _step_of_fused(workdir: Path) -> int | None:
    """Returns `fused_step`; None, with a warning, if the file that contains it is damaged."""
    try:
        return fused_step(workdir)
    except UsageError as error:
        warn_once("%s", error)
        return None


def _say_what_changed(config: ConfigDict, workdir: Path) -> None:
    """Logs the fields that differ from the first start of a run, none of which is in its hash."""
    changed = changed_fields(to_json(config), workdir).items()
    if text := ", ".join(f"{name}={new} instead of {old}" for name, (old, new) in changed):
        inform_once(f"this command has other values than {workdir}/config.json: {text}")


def _train_and_fuse(
    config: ConfigDict,
    experiment: Experiment,
    workdir: Path,
    stopping: Stopping,
    startup: StartupTimer,
    earlier: dict[str, Any],
) -> dict[str, Any]:
    """Trains, evaluates, fuses and verifies; returns the report."""
    after_batch = partial(_check_after_training, stopping, experiment.mesh)

    trained = train(experiment, workdir, stopping, startup)
    evaluation = trained.evaluation
    step = int(trained.state.step)
    pair = trained.state.net, local_copy(trained.state.eval_variables, experiment.mesh)
    forms = {"train_form": pair}
    metrics = {"train_form": trained.metrics or evaluation(*pair, after_batch)}
    fusion = {}
    if experiment.net.fusable:
        inform_once("fusing, verifying and evaluating the fused form ...")
        images, tolerance = evaluation.images(config.fuse.verify_images), config.fuse.tolerance
        forms["fused"], verified = fuse_and_save(
            pair, step, workdir, images, tolerance, experiment.mesh
        )
        metrics["fused"] = evaluation(*forms["fused"], after_batch)
        fusion = {"fusion": _fusion_fields(verified, experiment.net.dtype)}
    else:
        block = experiment.net.block
        print_once(f"block={block!r} cannot be fused; deploy the train form")

    size = config.data.eval_image_size or config.data.image_size
    return {
        "model": model_name(config),
        "config_hash": config_hash(config),
        "device": f"{jax.devices()[0].device_kind} x{experiment.mesh.size}",
        "classes": list(experiment.train_data.source.class_names),
        "steps": step,
        **_speed(trained, startup, earlier),
        **{
            name: {form: values[name] for form, values in metrics.items()}
            for name in scalars(metrics["train_form"])
            if name != "count"
        },
        "training_loss": training_loss_terms(experiment.step_options),
        "eval_count": metrics["train_form"]["count"],
        **confusion_fields(metrics),
        "skipped": {
            "train": len(experiment.train_data.source.skipped),
            "test": len(experiment.eval_data.source.skipped),
        },
        **fusion,
        "params": {form: count_parameters(tree) for form, (_, tree) in forms.items()},
        "macs": {form: count_macs(net, tree, size) for form, (net, tree) in forms.items()},
        "compiled": {name: round(s, 2) for name, s in startup.compiled().items() if s >= 0.1},
        "start_seconds": (seconds := time.monotonic() - startup.began),
        "wall_seconds": trained.seconds_before + seconds,
    }


def _fusion_fields(verified: FusionReport, dtype: Dtype) -> dict[str, Any]:
    """Returns the report's fields on the fusion: at highest precision, and as deployed."""
    return {
        "dtype": jnp.dtype(accumulation_dtype(dtype)).name,
        "max_relative_error": verified.max_relative_error,
        "top1_agreement": verified.top1_agreement,
        "logit_kl": verified.logit_kl,
        "deployed": {"dtype": jnp.dtype(dtype).name, **dataclasses.asdict(verified.deployed)},
    }


def _starts(workdir: Path) -> dict[str, Any]:
    """Returns the report's fields on the starts of the run, from its history."""
    *earlier, latest = environments(workdir)
    starts = len(read_history(workdir))
    return {"starts": starts, "environment": latest, "earlier_environments": earlier}


def _print_report(
    report: dict[str, Any], picture: Path | None, step_of_fused: int | None = None
) -> None:
    print(summary(report, step_of_fused))
    if "confusion" in report:
        show_confusion(np.array(report["confusion"]["train_form"]), report["classes"], picture)


def _speed(
    trained: TrainResult, startup: StartupTimer, earlier: dict[str, Any]
) -> dict[str, float | None]:
    """Returns the report's speed fields, from an earlier report if no step was left to train."""
    measured = {
        "examples_per_second": trained.examples_per_second,
        "waiting_for_data": trained.waiting,
        "temporaries_bytes": trained.temporaries_bytes,
        "first_step_seconds": startup.seconds,
        "compile_seconds": startup.compile_seconds,
    }
    return {name: earlier.get(name) if value is None else value for name, value in measured.items()}


def _check_after_training(stopping: Stopping, mesh: Mesh) -> None:
    """Raises Stopped if a stop was requested; training is complete and saved at this point."""
    try:
        stopping.check(mesh)
    except Stopped as stop:
        raise Stopped(
            f"stopped by {stop} after the last step, which is saved; "
            "rerun the same command to resume"
        ) from None
