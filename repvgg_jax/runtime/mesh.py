"""The device mesh, and how arrays are laid out on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from repvgg_jax.errors import UsageError

AXES = ("data", "fsdp")
FSDP_MIN_SIZE = 2**16  # elements; gathering a smaller array costs more than replicating it


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh [data, fsdp] over the devices of all processes, in process order.

    A batch is split over both axes, so that both are data parallel; parameters are split over
    `fsdp` and replicated over `data`.

    Args:
      data: size of the first axis; -1 for all devices that `fsdp` leaves.
      fsdp: size of the second axis; -1 for all devices that `data` leaves.
      devices: all devices by default, of which a single process may use the first few only.

    Raises:
      UsageError: if the sizes do not fit the devices.

    Example:
      >>> make_mesh(data=-1, fsdp=1).shape  # doctest: +SKIP
      OrderedDict([('data', 4), ('fsdp', 1)])
    """
    # Rows of a batch follow the order of the processes, so that their number does not matter.
    devices = sorted(
        jax.devices() if devices is None else devices,
        key=lambda device: (device.process_index, device.id),
    )
    sizes = {"mesh.data": data, "mesh.fsdp": fsdp}
    for field, size in sizes.items():
        if size == 0 or size < -1:
            raise UsageError(
                f"{field}={size}: must be a number of devices, or -1 for the remaining ones"
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
    """Returns the sharding with a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def parameter_shardings(tree: Any, mesh: Mesh, min_size: int = FSDP_MIN_SIZE) -> Any:
    """Returns a sharding for each array of a state: its largest axis that `fsdp` divides is split.

    Arrays of less than `min_size` elements, and those without an axis to split, are replicated.
    Optimizer states and averages have the shapes of their parameters and get the same layout.
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
    """Returns the global batch, split over all devices, from this process's rows of it."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def place(leaf: Any, sharding: NamedSharding) -> Any:
    """Lays out an array that every process has whole, or that is on the sharding's devices."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(_same, out_shardings=sharding)(leaf)
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _same(leaf: Any) -> Any:
    """Returns its argument. A lambda in its place would be compiled again at every call."""
    return leaf


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with a whole copy of every array on every device of the mesh."""
    return jax.tree.map(lambda leaf: place(leaf, replicated(mesh)), tree)


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with a whole copy of every array on this process's first device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), replicate(tree, mesh))


def check_divides(field: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Checks that the devices split a batch into equal shares, and each share into `parts`.

    Raises:
      UsageError: if they do not, naming the field and the nearest batch sizes that fit.
    """
    unit = mesh.size * parts
    if batch_size < 1 or batch_size % unit:
        below = batch_size // unit * unit
        above = -(-max(batch_size, 1) // unit) * unit
        fits = f"{below} or {above}" if below > 0 else f"{above}"
        shares = f" with {parts} microbatches each" if parts > 1 else ""
        raise UsageError(
            f"{field}={batch_size}: {mesh.size} devices{shares} need a multiple of {unit}: {fits}"
        )
