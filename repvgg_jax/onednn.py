"""Convolutions on a CPU by oneDNN, through JAX's foreign function interface.

XLA's own reach half of its speed forward and a quarter for a kernel's gradient (docs/speed.md).
The library comes with requirements-cpu.txt; the calls into it, `onednn.cc`, are compiled at their
first use with the machine's C++ compiler, and kept in ~/.cache/repvgg_jax.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import math
import os
import shutil
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax import Array

from repvgg_jax.compilation import cache_folder

_SOURCE = Path(__file__).with_suffix(".cc")
_PASSES = ("convolution", "input_gradient", "kernel_gradient")
_INSTALL = "install it with pip install -r requirements-cpu.txt"


@cache
def missing() -> str | None:
    """What oneDNN's convolutions lack on this machine, in one line; None where they are ready.

    The first call compiles, where nothing was compiled before (4 s).
    """
    try:
        library = ctypes.CDLL(str(_compiled(_file("onednn-cpu-gomp", "libdnnl.so.3"))))
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError):
        return f"oneDNN is not here; {_INSTALL}"
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).splitlines()
        reason = next((line for line in lines if "error" in line), lines[0])
        logging.warning("oneDNN's convolutions cannot be used: %s", reason)
        return f"it cannot be used: {reason}"
    for name in _PASSES:
        handler = jax.ffi.pycapsule(getattr(library, f"repvgg_jax_{name}"))
        jax.ffi.register_ffi_target(f"repvgg_jax.{name}", handler, platform="cpu")
    return None


def _file(package: str, name: str) -> Path:
    """A file that a package brings."""
    for path in importlib.metadata.files(package) or ():
        if str(path).endswith(f"/{name}"):
            return Path(path.locate()).resolve()
    raise FileNotFoundError(f"{package} has no {name}")


def _compiled(library: Path) -> Path:
    """`onednn.cc` as a shared object that is linked to the library."""
    headers = _file("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.hpp").parents[2]
    parts = [_SOURCE.read_bytes(), str(library).encode(), jax.lib.__version__.encode()]
    digest = hashlib.sha256(b"\n".join(parts)).hexdigest()[:12]
    folder = cache_folder()
    built = folder / f"onednn-{digest}.so"
    if built.exists():
        return built
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise OSError("no C++ compiler (g++ or clang++) is here")
    folder.mkdir(parents=True, exist_ok=True)
    logging.info("compiling %s", _SOURCE.name)
    # Under a name of its own until it is whole: several processes may come here at once.
    with tempfile.TemporaryDirectory(dir=folder) as own:
        made = Path(own) / built.name
        subprocess.run(
            [
                *(compiler, "-O2", "-std=c++17", "-fPIC", "-shared", "-w", str(_SOURCE)),
                *(f"-I{headers}", f"-I{jax.ffi.include_dir()}", str(library)),
                *(f"-Wl,-rpath,{library.parent}", "-o", str(made)),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        made.replace(built)
    return built


def macs(x: tuple[int, ...], kernel: tuple[int, ...], y: tuple[int, ...]) -> int:
    """Multiply-adds of `convolve`, by the shapes of its arrays; zeros of the padding count."""
    return math.prod(y) * math.prod(kernel[:3])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolve(
    x: Array,
    kernel: Array,
    strides: int,
    groups: int,
    dilation: int,
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Array:
    """Cross-correlation of float32 images NHWC with a kernel HWIO, on one CPU device.

    Args:
      x: [batch, height, width, cin].
      kernel: [kh, kw, cin / groups, features].
      strides, groups, dilation: of both axes.
      padding: zeros before and after height and width.
    """
    sides = [
        (side + sum(pad) - dilation * (size - 1) - 1) // strides + 1
        for side, size, pad in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    ]
    shape = (x.shape[0], *sides, kernel.shape[3])
    return _call("convolution", shape, x, kernel, strides, groups, dilation, padding)


def _forward(x: Array, kernel: Array, *geometry) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, *geometry), (x, kernel)


def _backward(*inputs) -> tuple[Array, Array]:
    *geometry, (x, kernel), dy = inputs
    dx = _call("input_gradient", x.shape, dy, kernel, *geometry)
    return dx, _call("kernel_gradient", kernel.shape, x, dy, *geometry)


convolve.defvjp(_forward, _backward)


def _call(
    name: str,
    shape: tuple[int, ...],
    left: Array,
    right: Array,
    strides: int,
    groups: int,
    dilation: int,
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Array:
    call = jax.ffi.ffi_call(
        f"repvgg_jax.{name}",
        jax.ShapeDtypeStruct(shape, left.dtype),
        vmap_method="sequential",
    )
    geometry = dict(strides=strides, groups=groups, dilation=dilation)
    geometry |= dict(top=padding[0][0], left=padding[1][0])
    return call(left, right, **{key: np.int64(value) for key, value in geometry.items()})
