"""The device mesh and the sharding of arrays over it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.devices import available_devices

AXES = ("data", "fsdp")
FSDP_MIN_SIZE = 2**16  # elements; for smaller arrays, gathering costs more than replication


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh [data, fsdp] over the devices of all processes, in process order.

    Batches are sharded over both axes. Parameters are sharded over `fsdp` and replicated over
    `data`.

    Args:
      data: size of the first axis; -1 for the device count divided by `fsdp`.
      fsdp: size of the second axis; -1 for the device count divided by `data`.
      devices: devices of the mesh, all by default. In a run of one process, the mesh may be smaller
        and then uses the first ones.

    Raises:
      UsageError: if the sizes do not fit the devices.

    Example:
      >>> make_mesh(data=-1, fsdp=1).shape  # doctest: +SKIP
      OrderedDict([('data', 4), ('fsdp', 1)])
    """
    # The rows of a batch are in process order, whatever the number of processes.
    devices = sorted(
        available_devices() if devices is None else devices,
        key=lambda device: (device.process_index, device.id),
    )
    sizes = {"mesh.data": data, "mesh.fsdp": fsdp}
    for field, size in sizes.items():
        if size == 0 or size < -1:
            raise UsageError(
                f"{field}={size}: must be a number of devices, or -1 for the remaining devices"
            )
    if data == fsdp == -1:
        raise UsageError("mesh.data=-1 and mesh.fsdp=-1: only one of them can be -1")
    count = len(devices)
    several = devices[0].process_index != devices[-1].process_index
    if -1 not in (data, fsdp) and not several:
        devices = devices[: data * fsdp]
    try:
        grid = np.array(devices).reshape(data, fsdp)
    except ValueError:
        given = ", ".join(f"{field}={size}" for field, size in sizes.items())
        raise UsageError(
            f"mesh.data * mesh.fsdp must equal the device count ({count}); given: {given}"
        ) from None
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def parameter_shardings(tree: Any, mesh: Mesh, min_size: int = FSDP_MIN_SIZE) -> Any:
    """Returns the sharding of each array of a state: over `fsdp` along its largest divisible axis.

    Arrays without a divisible axis, or with less than `min_size` elements, are replicated.
    Optimizer states and EMAs have the shapes of their parameters and get the same shardings.
    """
    parts = mesh.shape.get("fsdp", 1)

    def sharding(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < min_size or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        names = ["fsdp" if axis == longest else None for axis in range(leaf.ndim)]
        return NamedSharding(mesh, PartitionSpec(*names))

    return jax.tree.map(sharding, tree)


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Returns the global batch, sharded over all devices, given the rows of this process."""
    return _from_local_rows(batch, batch_sharding(mesh))


def place_batches(batches: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Returns stacked batches [batches, rows, ...] as `shard_batch` returns each of them."""
    return _from_local_rows(batches, NamedSharding(mesh, PartitionSpec(None, mesh.axis_names)))


def _from_local_rows(arrays: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, Any]:
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in arrays.items()
    }


def place(leaf: Any, sharding: NamedSharding) -> Any:
    """Returns `leaf`, which is global or equal in all processes, with the given sharding."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(_same, out_shardings=sharding)(leaf)
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _same(leaf: Any) -> Any:
    """Returns its argument; `jax.jit` of a lambda would recompile at every call."""
    return leaf


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with all arrays replicated over the devices of the mesh."""
    return jax.tree.map(lambda leaf: place(leaf, replicated(mesh)), tree)


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with a full copy of each array on this process's first device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), replicate(tree, mesh))


def check_divides(field: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Checks that `batch_size` is a multiple of the number of devices times `parts`.

    Raises:
      UsageError: if it is not; the message names `field` and the nearest valid batch sizes.
    """
    unit = mesh.size * parts
    if batch_size < 1 or batch_size % unit:
        below = batch_size // unit * unit
        above = -(-max(batch_size, 1) // unit) * unit
        fits = f"{below} or {above}" if below > 0 else f"{above}"
        shares = f" with {parts} microbatches each" if parts > 1 else ""
        need = f"1 device{shares} needs" if mesh.size == 1 else f"{mesh.size} devices{shares} need"
        raise UsageError(f"{field}={batch_size}: {need} a multiple of {unit} ({fits})")
