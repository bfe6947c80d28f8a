"""The environment of a run: everything besides its config that its numbers depend on."""

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from repvgg_jax.config.build import Experiment
from repvgg_jax.data.split import Split
from repvgg_jax.ops.convolution import engine
from repvgg_jax.runtime.devices import compiling_for, cpu_cores
from repvgg_jax.version import __version__, git_commit

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# With a difference in one of these, the same config may give other numbers.
_COMPARED = (
    "convolutions",
    "dtype",
    "matmul_precision",
    "device",
    "versions.jax",
    "versions.jaxlib",
    "versions.flax",
    "processor",
    "data.train.version",
    "data.train.images",
    "data.train.classes_hash",
)


def environment(
    experiment: Experiment, compiler_options: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns the environment that computes an experiment, in JSON form.

    It holds versions, the commit of the code, the devices, the library that computes convolutions,
    precisions, the given compiler options of the training steps, and the name, version and size of
    the data.

    Example:
      >>> environment(experiment)["convolutions"]  # doctest: +SKIP
      'oneDNN 2023.2.0'
    """
    mesh, net = experiment.mesh, experiment.net
    devices = list(mesh.devices.flat)
    with compiling_for(devices):
        convolutions = engine(net.conv_algorithm, net.dtype)
    return {
        "versions": {
            "repvgg_jax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        **git_commit(),
        "device": devices[0].device_kind,
        "device_count": len(devices),
        "processes": jax.process_count(),
        "processor": _processor(),  # of the host
        "cores": cpu_cores(),
        "convolutions": convolutions,
        "dtype": jnp.dtype(net.dtype).name,
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",
        "compiler_options": dict(compiler_options or {}),
        "xla_flags": os.environ.get("XLA_FLAGS", "").split(),
        "data": {
            name: _data(split)
            for name, split in (("train", experiment.train_data), ("test", experiment.eval_data))
            if split is not None
        },
    }


def _data(split: Split) -> dict[str, Any]:
    source = split.source
    names = json.dumps(source.class_names).encode()
    return {
        "name": source.name,
        "version": source.version,
        "images": len(source),
        "classes": source.num_classes,
        "classes_hash": hashlib.sha256(names).hexdigest()[:12],
    }


def _processor() -> str:
    """Returns the name of the CPU, as Linux reports it, or else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model n"))
            return next(names, platform.machine())
    except OSError:
        return platform.machine()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two environments, among the fields that change numbers.

    Example:
      >>> differences({"convolutions": "XLA"}, {"convolutions": "oneDNN 2023.2.0"})
      ['convolutions XLA before, oneDNN 2023.2.0 now']
    """
    found = []
    for field in _COMPARED:
        old, new = _value(before, field), _value(now, field)
        if old != new and not (field == "processor" and now.get("device") != "cpu"):
            name = field.removeprefix("versions.").replace(".", " ").replace("_", " ")
            found.append(f"{name} {old} before, {new} now")
    return found


def _value(tree: Any, field: str) -> Any:
    for key in field.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def describe(environment: Mapping[str, Any]) -> str:
    """Returns the environment as one line: device, convolutions, versions and commit."""
    versions = environment["versions"]
    count, kind = environment["device_count"], environment["device"]
    devices = kind if count == 1 else f"{count} x {kind}"
    if environment["cores"] and kind == "cpu":
        devices += f" ({environment['cores']} cores)"
    commit = environment["commit"]
    code = f"repvgg_jax {versions['repvgg_jax']}"
    if commit:
        code += f" at {commit[:8]}" + (" with local changes" if environment["dirty"] else "")
    return (
        f"{devices}, convolutions by {environment['convolutions']}, JAX {versions['jax']}, {code}"
    )
