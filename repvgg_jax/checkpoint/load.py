"""Loads a run's `(net, variables)` on any host, in train form or fused form."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from flax import linen as nn
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from repvgg_jax.checkpoint.fused import fused_step, load_fused
from repvgg_jax.checkpoint.manager import checkpoint_folder, newest_readable, open_reader, steps
from repvgg_jax.config.workdir import read_config
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import Averaged, abstract, create
from repvgg_jax.runtime.files import local_path


def load(
    workdir: str | Path, fused: bool = False, step: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a run's `(net, variables)` on this host's first device, for a run from any devices.

    For a run with an EMA, the averaged variables are returned, marked as `Averaged`.

    Args:
      workdir: folder of a run.
      fused: True to load the fused pair, which `--mode=train` and `--mode=fuse` write.
      step: step of the checkpoint; by default the latest readable one, with a warning that names
        any damaged ones. If `fused` is True, the step that the fused pair must be of; by default
        any, with a warning if it is not the latest.

    Raises:
      UsageError: if there is no run, or the checkpoint is missing or unreadable.

    Example:
      >>> net, variables = load("runs/b1")  # doctest: +SKIP
    """
    workdir = local_path(workdir).absolute()
    if fused:
        pair = load_fused(workdir, _net(read_config(workdir)))
        _check_fused_step(workdir, step)
        return pair
    net, variables, _ = load_trained(workdir, step)
    return net, variables


def _check_fused_step(workdir: Path, step: int | None) -> None:
    """Raises UsageError if the fused pair is not of `step`; warns if it is not of the latest."""
    fused, found = fused_step(workdir), steps(workdir)
    if step not in (None, fused):
        raise UsageError(
            f"the fused weights in {workdir} are of step {fused}, not {step}; replace them by "
            f"--mode=fuse --step={step}, or fuse in memory: fuse(*load(workdir, step={step}))"
        )
    if step is None and found and fused != found[-1]:
        logging.warning(
            "the fused weights in %s are of step %d, not of the latest checkpoint, %d; pass "
            "step=%d to load either form of that step",
            workdir,
            fused,
            found[-1],
            fused,
        )


def load_trained(workdir: Path, step: int | None = None) -> tuple[nn.Module, dict[str, Any], int]:
    """Returns the train form's net and variables, and the step of their checkpoint."""
    workdir = local_path(workdir).absolute()
    config = read_config(workdir)
    net = _net(config)
    folder = checkpoint_folder(workdir)
    found = steps(workdir)
    if not found:
        raise UsageError(f"no checkpoint under {folder}; run --mode=train first")
    if step is not None and step not in found:
        raise UsageError(f"no checkpoint of step {step} under {folder}; available: {found}")
    device = SingleDeviceSharding(jax.local_devices()[0])
    wanted = ocp.args.StandardRestore(abstract(net, device))
    candidates = found[::-1] if step is None else [step]
    with open_reader(workdir) as manager:
        step, restored = newest_readable(manager, candidates, variables=wanted)
    variables = restored.variables
    if config.optim.ema_decay > 0:
        variables = {name: Averaged(tree) for name, tree in variables.items()}
    return net, variables, step


def fused_step_of(workdir: Path, step: int | None = None) -> int | None:
    """Returns the step of the fused weights if it is the wanted one, else None.

    The wanted step is `step`, or by default that of the latest checkpoint. Without either, in a run
    that has no checkpoints, any step is accepted.
    """
    wanted = steps(workdir)[-1:] if step is None else [step]
    fused = fused_step(workdir)
    return fused if wanted in ([], [fused]) else None


def load_form(workdir: Path, step: int | None = None) -> tuple[nn.Module, Any, str]:
    """Returns a run's `(net, variables)` of a step, the latest by default, and which form it is.

    It is the fused form if `fused_step_of` finds fused weights of that step.
    """
    if (fused := fused_step_of(workdir, step)) is not None:
        return *load(workdir, fused=True, step=fused), f"fused form, step {fused}"
    net, variables, loaded = load_trained(workdir, step)
    other = ""
    if (fused := fused_step(workdir)) is not None and step is None:
        other = (
            f" (the fused weights are of step {fused}; --step={fused} uses them, "
            "--mode=fuse renews them)"
        )
    return net, variables, f"train form, step {loaded}{other}"


def _net(config: ConfigDict) -> nn.Module:
    """Returns the run's net, with "auto" instead of "onednn", which this host may lack."""
    fields = config.model.to_dict()
    if fields.get("conv_algorithm") == "onednn":
        fields["conv_algorithm"] = "auto"
    return create(**fields)
