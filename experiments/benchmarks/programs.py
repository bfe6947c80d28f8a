"""The programs that benchmarks compare: training steps and forward passes in JAX and PyTorch.

Both libraries take plain SGD steps on a batch that stays on the device.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repvgg_jax.nets import Net, abstract
from repvgg_jax.runtime.compilation import cuda_graphs, temporaries_bytes

RATE = 0.01  # learning rate


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      run: runs it once.
      temporaries: bytes of memory besides its arguments and results; None if unknown.
      compile_seconds: time of its compilation.
    """

    run: Callable[[], Any]
    temporaries: int | None
    compile_seconds: float


def random_images(net: Net, batch: int, size: int) -> jax.Array:
    """Returns a batch of random images of the net's dtype."""
    return jax.random.normal(jax.random.key(1), (batch, size, size, 3), net.dtype)


def noise_like(shapes: Any) -> Any:
    """Returns random variables of the given shapes, made on the host.

    Nothing is compiled, as it is to initialize a net. Elements of kernels have the variance 2 /
    inputs, so that neither outputs nor gradients vanish, and those of running variances are 1.
    """
    noise = np.random.default_rng(0).standard_normal(2**20, np.float32)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("var", "scale"):
            return np.ones(leaf.shape, leaf.dtype)
        deviation = math.sqrt(2 / math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.01
        return np.resize(noise * np.float32(deviation), leaf.shape).astype(leaf.dtype)

    return jax.tree.map_with_path(fill, shapes)


def gradients(net: Net, variables: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
    """Returns the gradients of the parameters, and the updated statistics."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        given = {"params": params, "batch_stats": variables.get("batch_stats", {})}
        rngs = {"dropout": jax.random.key(0)}  # the same at each step, which costs as much
        logits, updated = net.apply(given, images, train=True, mutable=["batch_stats"], rngs=rngs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updated.get("batch_stats", {})

    return jax.grad(loss, has_aux=True)(variables["params"])


def jax_step(net: Net, variables: Any, batch: int, size: int) -> Program:
    """Returns a program that takes the next SGD step at each run, from the given variables on."""

    # The batch is an argument: computations on a constant would be done at compile time.
    def step(variables: Any, images: jax.Array, labels: jax.Array) -> Any:
        grads, stats = gradients(net, variables, images, labels)
        params = jax.tree.map(lambda p, g: p - RATE * g, variables["params"], grads)
        return {"params": params} | ({"batch_stats": stats} if stats else {})

    # A copy, since a step donates its state. One program: GPUs would compile one for each shape.
    state = jax.jit(partial(jax.tree.map, jnp.copy))(variables)
    data = random_images(net, batch, size), jnp.arange(batch) % net.num_classes
    compiled, seconds = _compiled(jax.jit(step, donate_argnums=0).lower(state, *data))

    def run() -> Any:
        nonlocal state
        state = compiled(state, *data)
        return state

    return Program(run, temporaries_bytes(compiled), seconds)


def jax_program(function: Callable[..., Any], *arguments: Any) -> Program:
    """Returns a program that computes a function of the given arguments."""
    compiled, seconds = _compiled(jax.jit(function).lower(*arguments))
    return Program(partial(compiled, *arguments), temporaries_bytes(compiled), seconds)


def jax_forward(net: Net, variables: Any, batch: int, size: int) -> Program:
    """Returns a program that computes the logits of a batch in evaluation mode."""
    return jax_program(partial(net.apply, train=False), variables, random_images(net, batch, size))


def jax_prepared_forward(net: Net, variables: Any, batch: int, size: int) -> Program:
    """Returns the program of `jax_forward` of a fused net, without conversions at each run.

    Layers get weights of the net's dtype, in the layout in memory that the compiler chooses.
    On a GPU, the program is a CUDA graph.
    """
    from jax.experimental.layout import Format, Layout  # here, since it is experimental

    def converted(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [key.key for key in path]
        # Layers cast their kernels, except for the head, which computes in float32.
        cast = "conv" in names or (names[-1] == "kernel" and "head" not in names)
        return leaf.astype(net.dtype) if cast else leaf

    images = random_images(net, batch, size)
    ready = jax.tree.map_with_path(converted, variables)
    forward = jax.jit(
        partial(net.apply, train=False),
        in_shardings=(Format(Layout.AUTO), None),
        compiler_options=cuda_graphs(jax.devices()[:1]) or None,
    )
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), ready)
    compiled, seconds = _compiled(forward.lower(shapes, images))
    (formats, _), _ = compiled.input_formats
    run = partial(compiled, jax.device_put(ready, formats), images)
    return Program(run, temporaries_bytes(compiled), seconds)


def _compiled(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, float]:
    start = time.perf_counter()
    compiled = lowered.compile()
    return compiled, time.perf_counter() - start


def step_temporaries(net: Net, batch: int, size: int) -> int | None:
    """Returns bytes of temporaries of a step's gradients, which are compiled but not run."""
    images = jax.ShapeDtypeStruct((batch, size, size, 3), net.dtype)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    lowered = jax.jit(partial(gradients, net)).lower(abstract(net), images, labels)
    return temporaries_bytes(lowered.compile())


class TorchDevice:
    """A device of PyTorch, on which its programs are made.

    Args:
      name: "cpu" or "cuda".
    """

    def __init__(self, name: str):
        import torch

        self.name = name
        self.kind = torch.cuda.get_device_name() if name == "cuda" else name
        self._torch = torch
        torch.backends.cudnn.benchmark = True
        torch.set_num_threads(len(os.sched_getaffinity(0)))

    def step(
        self, net: Net, batch: int, size: int, *, plain: bool, compiled: bool = False
    ) -> Callable[[], None]:
        """Returns a function that takes the step of `jax_step`; bfloat16 is PyTorch's autocast."""
        torch = self._torch
        twin = self._twin(net)
        twin = (twin.plain() if plain else twin).to(memory_format=torch.channels_last)
        forward = torch.compile(twin) if compiled else twin
        optimizer = torch.optim.SGD(twin.parameters(), RATE)
        images = self._images(batch, size)
        labels = torch.arange(batch, device=self.name) % net.num_classes
        mixed = jnp.dtype(net.dtype) == jnp.bfloat16

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.name, torch.bfloat16, enabled=mixed):
                loss = torch.nn.functional.cross_entropy(forward(images).float(), labels)
            loss.backward()
            optimizer.step()
            self._finish()

        return run

    def forward(
        self, net: Net, batch: int, size: int, mode: str | None = None
    ) -> Callable[[], None]:
        """Returns a function that runs the fused net on a batch.

        Args:
          net: the net in its train form.
          batch: number of images.
          size: side of the images in pixels.
          mode: mode of `torch.compile`; None for no compilation.
        """
        torch = self._torch
        dtype = getattr(torch, jnp.dtype(net.dtype).name)
        with torch.device(self.name):
            twin = self._twin(net).eval().deploy()
        twin = twin.to(dtype=dtype, memory_format=torch.channels_last)
        forward = twin if mode is None else torch.compile(twin, mode=mode)
        images = self._images(batch, size).to(dtype)

        def run() -> None:
            with torch.no_grad():
                forward(images)
            self._finish()

        return run

    def product(self, side: int, dtype: str) -> Callable[[], None]:
        """Returns a function that multiplies two square matrices."""
        torch = self._torch
        matrix = torch.randn(side, side, device=self.name).to(getattr(torch, dtype))

        def run() -> None:
            torch.matmul(matrix, matrix)
            self._finish()

        return run

    def forget(self) -> None:
        """Forgets compiled programs, which hold their nets, and frees memory kept for later use."""
        if "torch._dynamo" in sys.modules:
            self._torch.compiler.reset()
        if self.name == "cuda":
            self._torch.cuda.empty_cache()

    def _twin(self, net: Net) -> Any:
        from experiments.reference.torch_repvgg import TwinRepVGG

        with self._torch.device(self.name):
            return TwinRepVGG(net)

    def _images(self, batch: int, size: int) -> Any:
        images = self._torch.randn(batch, 3, size, size, device=self.name)
        return images.to(memory_format=self._torch.channels_last)

    def _finish(self) -> None:
        if self.name == "cuda":
            self._torch.cuda.synchronize()
