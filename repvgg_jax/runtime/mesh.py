"""The device mesh, and where arrays live on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from repvgg_jax.errors import UsageError

AXES = ("data", "fsdp")
FSDP_MIN_SIZE = 2**16  # numbers; below, gathering an array costs more than a copy of it


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices of all processes as [data, fsdp], in the order of the processes.

    A batch is split over both axes, so that both count as data parallel; parameters are split over
    `fsdp` and copied over `data`.

    Args:
      data, fsdp: sizes, one of which may be -1: whatever is left.
      devices: all there are by default. One process may use the first few of them.

    Raises:
      UsageError: where the sizes don't fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    # Rows of a batch follow the processes, so that a batch is the same for any number of them.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    sizes = {"mesh.data": data, "mesh.fsdp": fsdp}
    for field, size in sizes.items():
        if size == 0 or size < -1:
            raise UsageError(f"{field}={size}: a number of devices, or -1 for all that are left")
    if data == fsdp == -1:
        raise UsageError("mesh.data=-1 and mesh.fsdp=-1: only one of them can be what is left")
    count, known = len(devices), abs(data * fsdp)
    if -1 in (data, fsdp) and count % known == 0:
        data, fsdp = (count // known if size == -1 else size for size in (data, fsdp))
    several = len({device.process_index for device in devices}) > 1
    if -1 in (data, fsdp) or data * fsdp > count or (several and data * fsdp < count):
        said = " and ".join(f"{field}={size}" for field, size in sizes.items())
        raise UsageError(f"{said}: they must make {count}, the number of devices")
    grid = np.array(devices[: data * fsdp]).reshape(data, fsdp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def parameter_shardings(tree: Any, mesh: Mesh, min_size: int = FSDP_MIN_SIZE) -> Any:
    """Where each array of a state lives: its largest axis that `fsdp` divides is split over it.

    Arrays of less than `min_size` numbers, and those that no axis of can be split, are copied.
    Optimizer states and averages, whose arrays have their parameter's shape, fall in line.

    Args:
      tree: of arrays or `jax.ShapeDtypeStruct`s.
      mesh: with or without an axis `fsdp`.
      min_size: numbers in an array.
    """
    parts = mesh.shape.get("fsdp", 1)

    def place(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < min_size or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        names = ["fsdp" if axis == longest else None for axis in range(leaf.ndim)]
        return NamedSharding(mesh, PartitionSpec(*names))

    return jax.tree.map(place, tree)


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """This process's rows of a host batch -> arrays of the global batch, split over all devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def place(leaf: Any, sharding: NamedSharding) -> Any:
    """An array laid out anew; one that each process has whole, or one of the sharding's devices."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(_same, out_shardings=sharding)(leaf)
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _same(leaf: Any) -> Any:
    """The identity, by a name: JAX compiles a lambda anew for every array and evaluation."""
    return leaf


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A whole copy of every array on every device of the mesh."""
    return jax.tree.map(lambda leaf: place(leaf, replicated(mesh)), tree)


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """A whole copy of every array on this process's first device, for work that needs no mesh."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), replicate(tree, mesh))


def check_divides(field: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises UsageError unless the devices split a batch into equal parts, and those into `parts`.

    Args:
      field: for the message.
      batch_size: over all devices.
      mesh: of the devices.
      parts: of each device's share, such as the microbatches of gradient accumulation.
    """
    unit = mesh.size * parts
    if batch_size < 1 or batch_size % unit:
        below, above = batch_size // unit * unit, -(-max(batch_size, 1) // unit) * unit
        fits = f"{below} or {above}" if below > 0 else f"{above}"
        shares = f" with {parts} microbatches each" if parts > 1 else ""
        raise UsageError(
            f"{field}={batch_size}: {mesh.size} devices{shares} need a multiple, such as {fits}"
        )
