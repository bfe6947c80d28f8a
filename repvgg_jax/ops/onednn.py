"""Convolutions on a CPU by oneDNN, through JAX's foreign function interface.

XLA's own reach half of its speed forward and a quarter for a kernel's gradient (docs/notes/speed.md).
The library comes with the extra `cpu`; the calls into it, `onednn.cc`, are compiled at their
first use with the machine's C++ compiler, and kept in ~/.cache/repvgg_jax.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array
from jax.core import Tracer

from repvgg_jax.runtime.compilation import cache_folder

_SOURCE = Path(__file__).with_suffix(".cc")
_CALLS = ("convolution", "pack", "input_gradient", "kernel_gradient")
_PARTS = (
    ("onednn-cpu-gomp", "libdnnl.so.3"),
    ("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.hpp"),
)
_INSTALL = "install it with pip install -e '.[cpu]'"


@cache
def unavailable() -> str | None:
    """What oneDNN's convolutions lack on this machine, in one line; None where they are ready.

    The first call compiles, where nothing was compiled before (4 s).
    """
    try:
        files = [_file(*names) for names in _PARTS]
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError):
        return f"oneDNN is not here; {_INSTALL}"
    try:
        library = _loaded(*files)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # no home: the second
        lines = (getattr(error, "stderr", None) or str(error)).splitlines()
        reason = next((line for line in lines if "error" in line), [*lines, "no reason given"][0])
        logging.warning("oneDNN's convolutions cannot be used: %s", reason)
        return f"it cannot be used: {reason}"
    for name in _CALLS:
        handler = jax.ffi.pycapsule(getattr(library, f"repvgg_jax_{name}"))
        jax.ffi.register_ffi_target(f"repvgg_jax.{name}", handler, platform="cpu")
    return None


def _file(package: str, name: str) -> Path:
    """A file that a package brings."""
    for path in importlib.metadata.files(package) or ():
        if str(path).endswith(f"/{name}"):
            return Path(path.locate()).resolve()
    raise FileNotFoundError(f"{package} has no {name}")


def _loaded(library: Path, header: Path) -> ctypes.CDLL:
    """The calls, compiled anew where what an earlier run left cannot be loaded."""
    built = _compiled(library, header.parents[2])
    try:
        return ctypes.CDLL(str(built))
    except OSError:
        built.unlink(missing_ok=True)
        return ctypes.CDLL(str(_compiled(library, header.parents[2])))


def _compiled(library: Path, headers: Path) -> Path:
    """`onednn.cc` as a shared object that is linked to the library."""
    parts = [_SOURCE.read_bytes(), str(library).encode(), jax.lib.__version__.encode()]
    digest = hashlib.sha256(b"\n".join(parts)).hexdigest()[:12]
    folder = cache_folder()
    built = folder / f"onednn-{digest}.so"
    if built.exists():
        return built
    given = shlex.split(os.environ.get("CXX", ""))
    compiler = given or [name for name in ("g++", "clang++") if shutil.which(name)][:1]
    if not compiler or not shutil.which(compiler[0]):
        raise OSError(f"no C++ compiler is here ({' '.join(given) or 'g++ or clang++'})")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # programs are trusted
    logging.info("compiling %s", _SOURCE.name)
    # Under a name of its own until it is whole: several processes may come here at once.
    with tempfile.TemporaryDirectory(dir=folder) as own:
        made = Path(own) / built.name
        subprocess.run(
            [
                *(*compiler, "-O2", "-std=c++17", "-fPIC", "-shared", "-w", str(_SOURCE)),
                *(f"-I{headers}", f"-I{jax.ffi.include_dir()}", str(library)),
                *(f"-Wl,-rpath,{library.parent}", "-o", str(made)),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        made.replace(built)
    return built


class Window(NamedTuple):
    """Of a convolution: strides, groups and dilation of both axes.

    `padding`: zeros before and after height and width.
    """

    strides: int
    groups: int
    dilation: int
    padding: tuple[tuple[int, int], tuple[int, int]]


def convolve(
    x: Array, kernel: Array, bias: Array | None, window: Window, rectified: bool = False
) -> Array:
    """Cross-correlation of float32 images NHWC with a kernel HWIO, on one CPU device.

    A kernel that is a constant of the program being traced (`jax.jit(partial(net.apply, fused))`)
    is brought into oneDNN's layout there and then, and a constant in that layout.

    Args:
      x: [batch, height, width, cin].
      kernel: [kh, kw, cin / groups, features].
      bias: [features], added in the same pass over memory; or None.
      rectified: whether max(., 0) follows in that pass.
    """
    if kernel.shape[:2] == (1, 1) and window.padding == ((0, 0), (0, 0)):
        # At a stride, oneDNN 2023.2's own gradients write beyond their memory for few channels.
        x = x[:, :: window.strides, :: window.strides]
        window = window._replace(strides=1, dilation=1)
    packed = None
    if isinstance(x, Tracer) and not isinstance(kernel, Tracer):
        shapes = {"x": x.shape, "y": _shape(x, kernel, window)}
        flags = dict(biased=bias is not None, relu=rectified)
        flags |= {key: np.array(shape, np.int64) for key, shape in shapes.items()}
        with jax.ensure_compile_time_eval():
            packed = _call("pack", kernel.shape, window, kernel, **flags)
    return _convolve(x, kernel, bias, packed, window, rectified)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _convolve(
    x: Array,
    kernel: Array,
    bias: Array | None,
    packed: Array | None,
    window: Window,
    rectified: bool,
) -> Array:
    arrays = [x, kernel if packed is None else packed, *([] if bias is None else [bias])]
    flags = dict(relu=rectified, packed=packed is not None)
    return _call("convolution", _shape(x, kernel, window), window, *arrays, **flags)


def _shape(x: Array, kernel: Array, window: Window) -> tuple[int, ...]:
    """Of the result."""
    sides = [
        (side + sum(pad) - window.dilation * (size - 1) - 1) // window.strides + 1
        for side, size, pad in zip(x.shape[1:3], kernel.shape[:2], window.padding, strict=True)
    ]
    return (x.shape[0], *sides, kernel.shape[3])


def _forward(
    x: Array, kernel: Array, bias: Array | None, packed: Array | None, *static: Any
) -> tuple[Array, Any]:
    y = _convolve(x, kernel, bias, packed, *static)
    return y, (x, kernel, bias, packed, y if static[-1] else None)


def _backward(window: Window, rectified: bool, kept: Any, dy: Array) -> tuple[Any, ...]:
    x, kernel, bias, packed, y = kept
    if rectified:
        dy = jnp.where(y > 0, dy, 0)
    dx = _call("input_gradient", x.shape, window, dy, kernel)
    dkernel = _call("kernel_gradient", kernel.shape, window, x, dy)
    dbias = None if bias is None else dy.sum((0, 1, 2))
    # A packed kernel is a constant.
    return dx, dkernel, dbias, None if packed is None else jnp.zeros_like(packed)


_convolve.defvjp(_forward, _backward)


def _call(name: str, shape: tuple[int, ...], window: Window, *arrays: Array, **more: Any) -> Array:
    call = jax.ffi.ffi_call(
        f"repvgg_jax.{name}",
        jax.ShapeDtypeStruct(shape, arrays[0].dtype),
        vmap_method="sequential",
    )
    strides, groups, dilation, ((top, _), (left, _)) = window
    numbers = dict(strides=strides, groups=groups, dilation=dilation, top=top, left=left)
    return call(*arrays, **{key: np.int64(value) for key, value in numbers.items()}, **more)
