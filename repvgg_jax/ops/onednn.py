"""Convolutions on a CPU by oneDNN, called through JAX's foreign function interface (FFI).

oneDNN is twice as fast as XLA's own convolutions in the forward pass and four times as fast in the
kernel gradient (docs/notes/speed.md). It is a requirement on x86-64 Linux. The FFI handlers in
`onednn.cc` are compiled by the machine's C++ compiler, in `make setup` or at first use, and cached
in ~/.cache/repvgg_jax.

A program that `jax.export` makes, or that is lowered for another platform, gets XLA's convolutions
instead, since it will run where the library is not registered. Only the lowering knows this: the
function may have been traced before, to be run here. So the calls are a primitive of their own.
"""

import ctypes
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array, lax
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Float

from repvgg_jax.errors import one_line
from repvgg_jax.ops.algorithms import (
    Images,
    Kernel,
    Outputs,
    Window,
    add_bias_and_relu,
    xla_convolution,
)
from repvgg_jax.ops.batch_norm import AnyArray
from repvgg_jax.runtime.compilation import cache_folder
from repvgg_jax.runtime.messages import inform

_SOURCE = Path(__file__).with_suffix(".cc")
_CALLS = ("convolution", "pack", "input_gradient", "kernel_gradient")
_PARTS = {"onednn-cpu-gomp": "libdnnl.so.3", "onednn-devel-cpu-gomp": "oneapi/dnnl/dnnl.hpp"}


@cache
def unavailable() -> str | None:
    """Returns the reason why oneDNN cannot be used on this machine, or None if it can.

    The first call compiles the FFI handlers (4 s), unless an earlier process did.
    """
    if not has_build():
        return f"oneDNN's packages are for x86-64 Linux, not {platform.machine()} {sys.platform}"
    try:
        files = [_file(package, name) for package, name in _PARTS.items()]
    except (importlib.metadata.PackageNotFoundError, StopIteration):
        return f"{' or '.join(_PARTS)} is not installed; make setup or pip install -e . installs it"
    try:
        library = _loaded(*files)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        # RuntimeError: no home folder. Compilers print warnings before the error.
        lines = (getattr(error, "stderr", None) or "").splitlines()
        cause = next((line for line in lines if "error" in line), one_line(error))
        return f"its calls cannot be compiled and loaded: {cause}"
    for name in _CALLS:
        handler = jax.ffi.pycapsule(getattr(library, f"repvgg_jax_{name}"))
        jax.ffi.register_ffi_target(f"repvgg_jax.{name}", handler, platform="cpu")
    return None


def version() -> str:
    """Returns the version of the installed library."""
    return importlib.metadata.version("onednn-cpu-gomp")


def has_build() -> bool:
    """Returns True if there are packages of oneDNN for this platform."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


@cache
def available() -> bool:
    """Returns True if oneDNN can be used; if not, but its platform is supported, warns once."""
    if (reason := unavailable()) and has_build():
        logging.warning("training takes up to twice as long without oneDNN: %s", reason)
    return not reason


def _file(package: str, name: str) -> Path:
    """Returns the path of a file of an installed package."""
    paths = importlib.metadata.files(package) or ()
    return next(Path(path.locate()).resolve() for path in paths if path.match(name))


def _loaded(library: Path, header: Path) -> ctypes.CDLL:
    """Returns the compiled FFI handlers; recompiles them if the cached file cannot be loaded."""
    built = _compiled(library, header.parents[2])
    ctypes.CDLL(str(library))  # for handlers that another environment compiled
    try:
        return ctypes.CDLL(str(built))
    except OSError:
        built.unlink(missing_ok=True)
        return ctypes.CDLL(str(_compiled(library, header.parents[2])))


def _compiled(library: Path, headers: Path) -> Path:
    """Returns the path of the shared library made from `onednn.cc`, which it compiles if needed."""
    versions = [jax.lib.__version__, *map(importlib.metadata.version, _PARTS)]
    digest = hashlib.sha256(" ".join([*versions, _SOURCE.read_text()]).encode()).hexdigest()[:12]
    folder = cache_folder()
    built = folder / f"onednn-{digest}.so"
    if built.exists():
        return built
    wanted = shlex.split(os.environ.get("CXX", ""))
    compiler = wanted or [name for name in ("g++", "clang++") if shutil.which(name)][:1]
    if not compiler or not shutil.which(compiler[0]):
        names = " ".join(wanted) or "g++ or clang++"
        raise OSError(f"no C++ compiler ({names}) was found; install one, or set CXX to its path")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # cached programs are trusted
        # Compiled there and then moved, since several processes may compile at once.
        temporary = tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written ({error.strerror}); set XDG_CACHE_HOME to another folder"
        ) from error
    inform("compiling the calls of oneDNN, once on this machine (4 s) ...")
    with temporary:
        made = Path(temporary.name) / built.name
        command = [*compiler, "-O2", "-std=c++17", "-fPIC", "-shared", "-w", str(_SOURCE)]
        command += [f"-I{headers}", f"-I{jax.ffi.include_dir()}", str(library), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(built)
    return built


def convolve(
    x: Images,
    kernel: Kernel,
    bias: Float[AnyArray, " cout"] | None,
    window: Window,
    shape: tuple[int, ...],
    apply_relu: bool,
) -> Outputs:
    """Returns `convolution.convolve` in float32 on one CPU device; `shape` is the result's shape.

    If the kernel is a constant of the traced program (`jax.jit(partial(net.apply, fused))`), it is
    converted to oneDNN's layout during tracing and becomes a constant in that layout.
    """
    if kernel.shape[:2] == (1, 1) and window.padding == ((0, 0), (0, 0)):
        # With strides and few channels, the gradients of oneDNN 2023.2 write out of bounds.
        x = x[:, :: window.strides, :: window.strides]
        window = window._replace(strides=1, dilation=1)
    packed = None
    if isinstance(x, Tracer) and not isinstance(kernel, Tracer):
        flags = dict(biased=bias is not None, relu=apply_relu)
        shapes = dict(x=np.array(x.shape, np.int64), y=np.array(shape, np.int64))
        with jax.ensure_compile_time_eval():
            packed = _by_library(
                kernel, name="pack", shape=kernel.shape, window=window, **flags, **shapes
            )
    return _convolve(x, kernel, bias, packed, window, shape, apply_relu)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _convolve(
    x: AnyArray,
    kernel: AnyArray,
    bias: AnyArray | None,
    packed: AnyArray | None,
    window: Window,
    shape: tuple[int, ...],
    apply_relu: bool,
) -> Array:
    arrays = [array for array in (x, kernel, packed, bias) if array is not None]
    flags = dict(relu=apply_relu, packed=packed is not None)
    return _call.bind(*arrays, name="convolution", shape=shape, window=window, **flags)


def _forward(
    x: AnyArray, kernel: AnyArray, bias: AnyArray | None, packed: AnyArray | None, *static: Any
) -> tuple[Array, Any]:
    y = _convolve(x, kernel, bias, packed, *static)
    return y, (x, kernel, bias, packed, y if static[-1] else None)


def _backward(window: Window, _: Any, apply_relu: bool, saved: Any, dy: Array) -> tuple[Any, ...]:
    x, kernel, bias, packed, y = saved
    if apply_relu:
        dy = jnp.where(y > 0, dy, 0)
    dx = _call.bind(dy, kernel, name="input_gradient", shape=x.shape, window=window)
    dkernel = _call.bind(x, dy, name="kernel_gradient", shape=kernel.shape, window=window)
    dbias = None if bias is None else dy.sum((0, 1, 2))
    # A packed kernel is a constant, so it needs no gradient.
    return dx, dkernel, dbias, None if packed is None else jnp.zeros_like(packed)


_convolve.defvjp(_forward, _backward)


# A call of the library by `name`, with a result of `shape`. The arrays of "convolution" are x, the
# kernel, the packed kernel if `packed`, and the bias if there is one; those of the gradients are
# (dy, kernel) and (x, dy).
PRIMITIVE = "repvgg_jax.onednn"
_call = Primitive(PRIMITIVE)


@_call.def_abstract_eval
def _result(*arrays: Any, shape: tuple[int, ...], **_: Any) -> ShapedArray:
    return ShapedArray(shape, arrays[0].dtype)


@_call.def_impl
def _by_library(
    *arrays: AnyArray, name: str, shape: tuple[int, ...], window: Window, **flags: Any
) -> Array:
    if flags.get("packed"):
        x, _, *rest = arrays
        arrays = (x, *rest)
    call = jax.ffi.ffi_call(f"repvgg_jax.{name}", jax.ShapeDtypeStruct(shape, arrays[0].dtype))
    strides, groups, dilation, ((top, _), (left, _)) = window
    geometry = dict(strides=strides, groups=groups, dilation=dilation, top=top, left=left)
    return call(*arrays, **{key: np.int64(value) for key, value in geometry.items()}, **flags)


def _by_xla(
    *arrays: Array,
    name: str,
    shape: tuple[int, ...],
    window: Window,
    relu: bool = False,
    packed: bool = False,
) -> Array:
    first, second, *rest = arrays
    if name == "convolution":
        bias = rest[packed] if len(rest) > packed else None
        return add_bias_and_relu(xla_convolution(first, second, window), bias, relu)
    if name == "input_gradient":
        given, convolve_result = first, partial(xla_convolution, kernel=second, window=window)
    else:
        given, convolve_result = second, partial(xla_convolution, first, window=window)
    result = jax.ShapeDtypeStruct(shape, first.dtype)
    return jax.linear_transpose(convolve_result, result)(given)[0]


def _lower(context: mlir.LoweringRuleContext, *arrays: Any, **params: Any) -> Any:
    module = context.module_context
    exported = module.lowering_parameters.for_export
    by_library = not exported and tuple(module.platforms) == ("cpu",)
    rule = mlir.lower_fun(_by_library if by_library else _by_xla, multiple_results=False)
    return rule(context, *arrays, **params)


def _map(arrays: Any, axes: Any, **params: Any) -> tuple[Array, int]:
    """Calls the library for one element of a mapped axis after the other."""
    mapped = {
        index: jnp.moveaxis(array, axis, 0)
        for index, (array, axis) in enumerate(zip(arrays, axes, strict=True))
        if axis is not None
    }

    def one(part: dict[int, Array]) -> Array:
        parts = (part.get(index, array) for index, array in enumerate(arrays))
        return _call.bind(*parts, **params)

    return lax.map(one, mapped), 0


mlir.register_lowering(_call, _lower)
batching.primitive_batchers[_call] = _map
