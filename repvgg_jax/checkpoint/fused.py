"""Saves and loads the fused weights of a run, and checks them against their certificate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import linen as nn
from jax.sharding import SingleDeviceSharding

from repvgg_jax.checkpoint.integrity import check_shapes, read_named, root_cause
from repvgg_jax.errors import DamagedError, RunError, UsageError, one_line
from repvgg_jax.fusion.certificate import FILE, check
from repvgg_jax.nets import abstract
from repvgg_jax.runtime.files import read_json, write_json
from repvgg_jax.runtime.processes import primary

FUSED = "fused"  # subfolder of a workdir with the fused variables


def save_fused(workdir: Path, variables: Mapping[str, Any], certificate: Mapping[str, Any]) -> None:
    """Writes a fused net's variables and their certificate to the workdir, for `load_fused`.

    In a multi-process run, the variables must be global arrays.

    Raises:
      RunError: if writing fails.
    """
    path = workdir.absolute() / FUSED
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, variables, force=True)
        if primary():
            write_json(workdir / FILE, certificate)
    except Exception as error:  # Orbax and TensorStore raise many exception types
        raise RunError(
            f"the fused weights could not be written to {path} ({one_line(root_cause(error))}); "
            "run --mode=fuse to write them again from the latest checkpoint"
        ) from error


def has_fused(workdir: Path) -> bool:
    """Returns True if the workdir holds fused weights."""
    return (workdir / FUSED).exists()


def fused_step(workdir: Path) -> int | None:
    """Returns the checkpoint step of the workdir's fused weights; None if there are none."""
    if not has_fused(workdir):
        return None
    certificate = _read_certificate(workdir)
    if "step" not in certificate:
        raise UsageError(f"{workdir / FILE} lacks the step; run --mode=fuse to write it again")
    return certificate["step"]


def _read_certificate(workdir: Path) -> dict[str, Any]:
    return read_json(workdir / FILE, "run --mode=fuse to write it")


def load_fused(workdir: Path, net: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a run's fused `(net, variables)`, verified against the certificate.

    Raises:
      UsageError: if there are no fused weights, or they do not match the certificate.
    """
    if not has_fused(workdir):
        raise UsageError(
            f"no fused weights in {workdir / FUSED}; write them with "
            f"`python main.py --mode=fuse --workdir={workdir}`"
        )
    fused_net = net.clone(block="fused")
    expected = abstract(fused_net, SingleDeviceSharding(jax.local_devices()[0]))
    path = workdir / FUSED
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            metadata = read_named(path, lambda: _metadata(checkpointer, path))
            check_shapes(path, expected, metadata)
            variables = read_named(path, lambda: checkpointer.restore(path, expected))
    except DamagedError as error:
        raise DamagedError(f"{error}; run --mode=fuse to write it again") from error
    check(_read_certificate(workdir), variables, str(path))
    return fused_net, variables


def _metadata(checkpointer: ocp.StandardCheckpointer, path: Path) -> Any:
    metadata = checkpointer.metadata(path).item_metadata
    if metadata is None:
        raise ValueError("its metadata are missing or incomplete")
    return metadata
