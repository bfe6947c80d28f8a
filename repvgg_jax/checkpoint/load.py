"""Orbax checkpoints: what is saved, which is kept, and how any host opens them.

A step's folder holds three items: `variables` (params and batch_stats, all that a reader needs),
`optimizer` (its state and the step) and `position` (of the data: seed and step).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from flax import linen as nn
from ml_collections import ConfigDict

from repvgg_jax.checkpoint.fused import load_fused
from repvgg_jax.checkpoint.manager import _checkpoints, _newest, _reader, _restore, steps
from repvgg_jax.config.build import make_net
from repvgg_jax.config.workdir import read_config
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import Averaged, abstract_variables
from repvgg_jax.ops import onednn


def load(
    workdir: str | Path, fused: bool = False, step: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """A run's `(net, variables)`, on this host's first device, wherever it was trained.

    Of a run with an EMA the averaged pair, marked as one (`averages.Averaged`).

    Args:
      workdir: of a run.
      fused: the fused pair, which `--mode=train` ends with and `--mode=fuse` writes.
      step: of the checkpoint; the latest that can be read by default, with a warning that names
        damaged ones. Not with `fused`.

    Raises:
      UsageError: where there is no run, or no such checkpoint that can be read.
    """
    workdir = Path(workdir).absolute()
    if fused and step is not None:
        raise UsageError("fused weights are of one step, which fusion.json names; drop step")
    if fused:
        return load_fused(workdir, make_net(_config(workdir)))
    return load_trained(workdir, step)[:2]


def load_trained(workdir: Path, step: int | None = None) -> tuple[nn.Module, dict[str, Any], int]:
    """What `load` gives of the train form, and the step that it is of."""
    workdir = Path(workdir).absolute()
    config = _config(workdir)
    net = make_net(config)
    directory, found = _checkpoints(workdir), steps(workdir)
    if not found:
        raise UsageError(f"no checkpoint under {directory}; `--mode=train` writes them")
    if step is not None and step not in found:
        raise UsageError(f"no checkpoint of step {step} under {directory}; there are {found}")
    wanted = ocp.args.StandardRestore(abstract_variables(net))
    with _reader(workdir) as manager:
        step, restored = _newest(
            directory,
            found[::-1] if step is None else [step],
            lambda step: _restore(manager, step, variables=wanted),
        )
    variables = restored.variables
    if config.optim.ema_decay > 0:
        variables = {name: Averaged(tree) for name, tree in variables.items()}
    return net, variables, step


def _config(workdir: Path) -> ConfigDict:
    """A run's config, for this host, which may lack the library that the run was made with."""
    config = read_config(workdir)
    if config.model.conv_algorithm == "onednn" and onednn.unavailable():
        config.model.conv_algorithm = "auto"
    return config
