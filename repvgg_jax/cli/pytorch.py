"""`--mode=import` and `--mode=to_torch`: runs from PyTorch weights, and PyTorch weights of runs."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from repvgg_jax.checkpoint import load
from repvgg_jax.checkpoint import manager as manager_module
from repvgg_jax.config.build import config_mesh, data_seed, make_net, make_optimizer
from repvgg_jax.config.fields import check_values
from repvgg_jax.config.workdir import check_workdir, make_workdir
from repvgg_jax.errors import UsageError
from repvgg_jax.interop.pytorch import from_torch, to_torch
from repvgg_jax.interop.pytorch_files import read_torch, save_torch
from repvgg_jax.training.step import init_state


def run_import(config: ConfigDict | None, workdir: Path, weights: str | None) -> None:
    """Write a file's weights as a run's checkpoint of step 0, which every other mode goes on from.

    Raises:
      UsageError: without a config or a file, where the weights are not the net's, and where the
        workdir has checkpoints already.
    """
    if config is None or weights is None:
        raise UsageError("--mode=import needs --config and --weights=FILE (.pth or .safetensors)")
    if config.init_from is not None:
        raise UsageError("--mode=import takes its weights from --weights; drop config.init_from")
    check_values(config)
    check_workdir(config, workdir)
    if found := manager_module.steps(workdir):
        raise UsageError(f"--workdir={workdir} has a checkpoint of step {found[-1]}; name another")
    net = make_net(config)
    variables = from_torch(net, read_torch(weights))
    # The state of the optimizer has the same form under any schedule.
    tx = make_optimizer(config, lambda step: jnp.float32(0))
    average = config.optim.ema_decay > 0
    state = init_state(net, tx, config_mesh(config), jax.random.key(config.seed), average)
    state = state.starting_from(variables)
    make_workdir(config, workdir)
    with manager_module.open_manager(workdir, config.train.keep) as manager:
        position = {"seed": data_seed(config), "step": 0}
        manager_module.save(manager, state.variables, state.optimizer, position)
        manager_module.check_saved(manager, wait=True)
    print(f"{weights} is now the checkpoint of step 0 in {workdir}")


def run_to_torch(workdir: Path, weights: str | None, layout: str, fused: bool) -> None:
    """Write the latest checkpoint, or the fused weights, as a file that PyTorch loads.

    Raises:
      UsageError: without a file to write to, and whatever `load` and `to_torch` raise.
    """
    if weights is None:
        raise UsageError("--mode=to_torch needs --weights=FILE (.pth or .safetensors) to write to")
    net, variables = load.load(workdir, fused=fused)
    save_torch(weights, to_torch(net, variables, layout))
    print(f"{weights} holds the weights of {workdir} under {layout} names")
