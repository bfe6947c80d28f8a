"""`--mode=fuse`: fuses a checkpoint of a run and verifies the result."""

from pathlib import Path
from typing import Any

from flax import linen as nn
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repvgg_jax.checkpoint.fused import save_fused
from repvgg_jax.checkpoint.load import load_trained
from repvgg_jax.cli.evaluate import evaluation_config, open_evaluation
from repvgg_jax.config.describe import model_name
from repvgg_jax.config.fields import config_hash
from repvgg_jax.config.workdir import lock_run, read_config
from repvgg_jax.errors import RunError
from repvgg_jax.fusion.certificate import certify
from repvgg_jax.fusion.fuse import fuse
from repvgg_jax.fusion.verify import FusionReport, verify
from repvgg_jax.runtime.mesh import replicate
from repvgg_jax.runtime.processes import inform_once, print_once


def run_fuse(config: ConfigDict | None, workdir: Path, step: int | None = None) -> None:
    """Fuses a checkpoint of a run, verifies the fused pair, and writes it to the workdir.

    The checkpoint is that of `step`, or else the latest readable one. Images and tolerance are
    those of `config`, which defaults to the run's own config.

    Raises:
      UsageError: if there is no run or no checkpoint of the step, or its block cannot be fused.
      HeldError: if another process trains in the workdir.
      RunError: if verification or writing fails.
    """
    config = evaluation_config(config, workdir)
    inform_once(f"fusing {model_name(read_config(workdir))} in {workdir}, and verifying it")
    with lock_run(workdir):
        evaluation = open_evaluation(config, workdir)
        net, variables, step = load_trained(workdir, step)
        images = evaluation.images(config.fuse.verify_images)
        pair, tolerance = (net, variables), config.fuse.tolerance
        _, report = fuse_and_save(pair, step, workdir, images, tolerance, evaluation.mesh)
    print_once(str(report))
    print_once(
        f"rj.load({str(workdir)!r}, step={step}, fused=True) opens the fused pair, without "
        "fused=True the train form of the same step"
    )


def fuse_and_save(
    pair: tuple[nn.Module, Any],
    step: int,
    workdir: Path,
    images: Array,
    tolerance: float,
    mesh: Mesh,
    *,
    image_kind: str = "evaluation",
) -> tuple[tuple[nn.Module, Any], FusionReport]:
    """Fuses a `(net, variables)` pair, verifies it on normalized images, and writes it.

    The certificate records the `image_kind`, "evaluation" or "random".

    Raises:
      RunError: if the two forms differ by more than the tolerance, `fuse.tolerance` of the config,
        or writing fails.
    """
    fused_net, fused_variables = fuse(*pair)
    report = verify(*pair, images, (fused_net, fused_variables))
    if not report.max_relative_error <= tolerance:
        blocks = ""
        if report.blocks:  # deep_plain has none
            error = report.blocks[report.worst_block]
            blocks = f" and {error:.1e} in the worst block, {report.worst_block}"
        raise RunError(
            "nothing was written, since the fused form differs from the train form by a relative "
            f"error of {report.exact.relative_error:.1e} in the logits{blocks}; the limit is "
            f"fuse.tolerance={tolerance:g}"
        )
    run_hash = config_hash(read_config(workdir))
    certificate = certify(
        report,
        fused_variables,
        images=len(images),
        image_kind=image_kind,
        step=step,
        config_hash=run_hash,
    )
    save_fused(workdir, replicate(fused_variables, mesh), certificate)
    return (fused_net, fused_variables), report
