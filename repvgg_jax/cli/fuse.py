"""`--mode=fuse`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from repvgg_jax.checkpoint import load
from repvgg_jax.checkpoint.fused import save_fused
from repvgg_jax.cli.common import say
from repvgg_jax.cli.evaluate import _evaluation
from repvgg_jax.config.fields import config_hash
from repvgg_jax.config.workdir import read_config
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.fusion.certificate import certify
from repvgg_jax.fusion.fuse import fuse
from repvgg_jax.fusion.verify import FusionReport, verify
from repvgg_jax.nets import init
from repvgg_jax.runtime.mesh import replicate
from repvgg_jax.training.evaluation import Evaluation


def run_fuse(config: ConfigDict | None, workdir: Path) -> None:
    """Fuse a run's latest checkpoint, prove the forms equal, and write the fused pair."""
    config = config or read_config(workdir)
    evaluation = _evaluation(config, workdir)
    net, variables, step = load.load_trained(workdir)
    *_, fusion = _fuse(config, workdir, evaluation, net, variables, step)
    say(f"{fusion}\nrepvgg_jax.load({str(workdir)!r}, fused=True) opens the fused pair")


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
