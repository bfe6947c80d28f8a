"""Ahead-of-time compilation of the training step, for devices that need not be present."""

import importlib.util
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from repvgg_jax.bench.hlo import traffic
from repvgg_jax.config.build import build
from repvgg_jax.errors import RunError, UsageError, one_line
from repvgg_jax.runtime.devices import compiling_for, is_exhausted
from repvgg_jax.runtime.mesh import batch_sharding, replicated
from repvgg_jax.training.state import abstract_state
from repvgg_jax.training.step import jit_train_step

GIB = 2**30
# Tells libtpu that this host is not part of a TPU slice, and that it may be loaded several times.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_HOST_BOUNDS": "1,1,1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class _Chip(NamedTuple):
    kind: str  # JAX's `device_kind`
    memory: int  # GiB
    axes: int  # axes of the torus
    pod: int  # chips of the largest slice
    options: dict[str, str]  # options of the topology that give one device per chip


_ONE_CORE = {"chip_config_name": "megacore"}  # the two cores of v4 and v5p are one device
_CHIPS = {
    "v4": _Chip("TPU v4", 32, 3, 4096, _ONE_CORE),
    "v5e": _Chip("TPU v5 lite", 16, 2, 256, {}),
    "v5p": _Chip("TPU v5", 95, 3, 8960, _ONE_CORE),
    "v6e": _Chip("TPU v6 lite", 32, 2, 256, {}),
}
_EXAMPLES = "v5e:4x4, v4:2x2x2 or cpu:8"


@dataclass(frozen=True)
class StepCost:
    """The cost of one step on one device, as reported by the compiler; memory is in bytes."""

    arguments: int
    outputs: int
    aliased: int  # part of the outputs that reuses the memory of arguments (the donated state)
    temporaries: int
    code: int
    flops: float  # a loop's body counts once
    bytes_accessed: float  # read from and written to memory; a loop's body counts once
    collectives: dict[str, tuple[int, int]]  # kind -> (number, bytes of results), all trips
    loops: int  # loops with more than one trip

    @property
    def memory(self) -> int:
        """Bytes of memory that a device needs for the step."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def prepare_compiler(topology: str) -> None:
    """Prepares this process to compile for `topology`; call it before JAX initializes a backend."""
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    name, sizes = _parse(topology)
    if name == "cpu":
        with suppress(RuntimeError):  # JAX has its devices already, as in a notebook
            jax.config.update("jax_num_cpu_devices", math.prod(sizes))
    else:  # programs for absent devices cannot be read from the cache
        jax.config.update("jax_enable_compilation_cache", False)


def topology_devices(text: str) -> list[jax.Device]:
    """Returns the devices of a topology such as `v5e:4x4` (chips along each axis) or `cpu:8`.

    Programs can be compiled for the TPU devices, which need not exist, but not run on them. The CPU
    devices are those of this process.

    Raises:
      UsageError: if the topology does not exist, libtpu is not installed, or this process has
        fewer CPU devices.
    """
    name, sizes = _parse(text)
    if name == "cpu":
        count, devices = sizes[0], jax.devices("cpu")
        if len(devices) < count:
            raise UsageError(
                f"--topology={text}: this process has {len(devices)} CPU devices; start it with "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
            )
        return devices[:count]
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(f"--topology={text} needs the TPU compiler: pip install libtpu")
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(text, "tpu", **_CHIPS[name].options)
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(f"--topology={text}: {one_line(error, 400)}") from None
    return list(topology.devices)


def _parse(text: str) -> tuple[str, list[int]]:
    """Parses `v5e:4x4` into its name and sizes, after checking that such a slice exists."""
    name, _, shape = text.partition(":")
    if name != "cpu" and name not in _CHIPS:
        raise UsageError(
            f"--topology={text} must be {', '.join(_CHIPS)} or cpu with a size, such as {_EXAMPLES}"
        )
    axes = 1 if name == "cpu" else _CHIPS[name].axes
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", shape) or shape.count("x") != axes - 1:
        raise UsageError(f"--topology={text}: {name} takes {axes} size(s), as in {_EXAMPLES}")
    sizes = [int(size) for size in shape.split("x")]
    if name in _CHIPS and math.prod(sizes) > _CHIPS[name].pod:
        raise UsageError(f"--topology={text}: a pod of {name} has only {_CHIPS[name].pod} chips")
    return name, sizes


def compile_step(config: ConfigDict, devices: list[jax.Device]) -> jax.stages.Compiled:
    """Compiles the config's training step for the devices, without creating arrays or opening data.

    The length of the schedule, a constant in the step that depends on the data, is a placeholder.

    Raises:
      UsageError: if the config cannot run on these devices.
      RunError: if the step does not fit in the devices' memory.
    """
    lowered, _ = lower_step(config, devices)
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        raise RunError(
            f"train.batch_size={config.train.batch_size} does not fit on {len(devices)} x "
            f"{devices[0].device_kind}; use more devices or a smaller batch. "
            f"{one_line(error, 400)}"
        ) from None


def lower_step(config: ConfigDict, devices: list[jax.Device]) -> tuple[jax.stages.Lowered, Any]:
    """Lowers the config's training step for the devices.

    Returns:
      The lowered step, and its arguments `(state, batch, key)` as `jax.ShapeDtypeStruct`s.

    Raises:
      UsageError: if the config cannot run on these devices.
    """
    if config.optim.repoptimizer_from is not None:
        raise UsageError("--mode=compile does not support optim.repoptimizer_from; unset it")
    experiment = build(config, devices, open_data=False)
    mesh = experiment.mesh
    state = abstract_state(experiment)
    rows, size = config.train.batch_size, config.data.image_size
    per_image = partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    batch = {
        "image": per_image((rows, size, size, 3), jnp.uint8),
        "label": per_image((rows,), jnp.int32),
        "mask": per_image((rows,), jnp.float32),
    }
    key = jax.eval_shape(jax.random.key, 0).update(sharding=replicated(mesh))
    arguments = (state, batch, key)
    with compiling_for(devices):
        step = jit_train_step(state, mesh, experiment.step_options)
        return step.lower(*arguments), arguments


def step_cost(compiled: jax.stages.Compiled) -> StepCost:
    """Returns the cost of a compiled program on each of its devices."""
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    collectives, loops = traffic(compiled.as_text())
    return StepCost(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=costs["flops"],
        bytes_accessed=costs["bytes accessed"],
        collectives=collectives,
        loops=loops,
    )


def memory_bytes(device: jax.Device) -> int | None:
    """Returns a TPU's memory in bytes, or None for other devices."""
    kinds = {chip.kind: chip.memory * GIB for chip in _CHIPS.values()}
    return kinds.get(device.device_kind)


def format_cost(cost: StepCost, title: str = "", hbm: int | None = None) -> str:
    """Returns the cost as a table below a title; `hbm` is a device's memory in bytes, if known."""
    rows = {
        "arguments": cost.arguments,
        "outputs": cost.outputs,
        "  aliased to arguments": -cost.aliased,
        "temporaries": cost.temporaries,
        "generated code": cost.code,
        "total": cost.memory,
    }
    lines = [title, "memory per device"] if title else ["memory per device"]
    lines += [f"  {name:<24}{size / GIB:>10.3f} GiB" for name, size in rows.items()]
    if hbm:
        verdict = "fits" if cost.memory <= hbm else "DOES NOT FIT"
        lines[-1] += f" of {hbm / GIB:g} ({cost.memory / hbm:.1%}): {verdict}"
    lines += [
        "per step and device",
        f"  {'FLOPs':<24}{cost.flops / 1e9:>10,.2f} G",
        f"  {'bytes accessed':<24}{cost.bytes_accessed / 1e9:>10,.2f} GB",
    ]
    for kind, (count, size) in cost.collectives.items():
        lines.append(f"  {kind:<24}{size / 1e6:>10,.2f} MB in {count:,}")
    if not cost.collectives:
        lines.append("  no collectives")
    if cost.loops:
        note = "bodies count once in FLOPs and bytes accessed, per trip in collectives"
        lines.append(f"{cost.loops} loop(s): {note}")
    return "\n".join(lines)
