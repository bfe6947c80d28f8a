"""The device mesh, and where arrays live on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from repvgg_jax.errors import UsageError


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """This process's rows of a host batch -> arrays of the global batch, split over `data`."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def check_divides(field: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UsageError unless the devices split a batch into equal, non-empty parts."""
    devices = mesh.shape["data"]
    if batch_size < 1 or batch_size % devices:
        below, above = batch_size // devices * devices, -(-max(batch_size, 1) // devices) * devices
        fits = f"{below} or {above}" if below > 0 else f"{above}"
        raise UsageError(f"{field}={batch_size}: {devices} devices need a multiple, such as {fits}")
