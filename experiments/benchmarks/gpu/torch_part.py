"""The same training steps and forward passes in PyTorch."""

import gc
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

from experiments.benchmarks.gpu.rows import (
    COMPILED,
    EAGER,
    FUSED,
    PLAIN_STEP,
    PRODUCT,
    STEP,
    Figure,
    Rows,
)
from experiments.benchmarks.gpu.sizes import Sizes
from experiments.benchmarks.measuring import as_one_line
from experiments.benchmarks.programs import TorchDevice
from repvgg_jax.bench.timing import time_interleaved
from repvgg_jax.errors import RunError

_WARM_UP = 10  # runs in which PyTorch compiles, tries algorithms and records CUDA graphs
_Make = Callable[[], Callable[[], Any]]


def measure_eager(sizes: Sizes, file: TextIO) -> None:
    """Measures PyTorch without a compiler."""
    device = open_device(sizes.platform)
    net, batch, size = sizes.make_net(), sizes.batch, sizes.image_size
    step = partial(device.step, net, batch, size)
    makers: dict[Figure, tuple[_Make, int]] = {
        Figure(PRODUCT): (partial(device.product, sizes.product, sizes.dtype), 2),
        Figure(STEP, batch): (partial(step, plain=False), 1),
        Figure(PLAIN_STEP, batch): (partial(step, plain=True), 1),
        Figure(FUSED, batch): (partial(device.forward, net, batch, size), 2),
        Figure(FUSED, 1): (partial(device.forward, net, 1, size), 5),
    }
    _measure(makers, device, sizes.rounds, Rows(file, EAGER, device.kind, ("torch",)))


def measure_compiled(sizes: Sizes, file: TextIO) -> None:
    """Measures PyTorch with `torch.compile`, first what compiles in the least time."""
    device = open_device(sizes.platform)
    net, batch, size = sizes.make_net(), sizes.batch, sizes.image_size
    step = partial(device.step, net, batch, size, compiled=True)
    forward = device.forward
    makers: dict[Figure, tuple[_Make, int]] = {
        # This mode replays CUDA graphs, and is for small batches.
        Figure(FUSED, 1): (partial(forward, net, 1, size, mode="reduce-overhead"), 5),
        Figure(FUSED, batch): (partial(forward, net, batch, size, mode="default"), 2),
        Figure(PLAIN_STEP, batch): (partial(step, plain=True), 1),
        Figure(STEP, batch): (partial(step, plain=False), 1),
    }
    _measure(makers, device, sizes.rounds, Rows(file, COMPILED, device.kind, ("torch",)))


def open_device(platform: str) -> TorchDevice:
    """Returns PyTorch's device of a platform.

    Raises:
      RunError: if PyTorch is not installed or cannot use the platform.
    """
    if importlib.util.find_spec("torch") is None:
        raise RunError("PyTorch is not installed (pip install torch)")
    import torch

    if platform == "cpu":
        return TorchDevice("cpu")
    if platform != "cuda":
        raise RunError(f"PyTorch is compared on CPUs and GPUs, but this machine has a {platform}")
    if not torch.cuda.is_available():
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise RunError(
            f"PyTorch {torch.__version__} is a build {build}, which cannot use the GPU of this "
            "machine; install another"
        )
    return TorchDevice("cuda")


def _measure(
    makers: dict[Figure, tuple[_Make, int]], device: TorchDevice, rounds: int, rows: Rows
) -> None:
    """Measures each program by itself, so that each has all the memory."""
    for figure, (make, times) in makers.items():
        try:
            rows.add_times(figure, _seconds(make, times * rounds))
        except Exception as error:
            rows.add_error(figure, as_one_line(error))
        gc.collect()  # the program, which its exception refers to as well
        device.forget()


def _seconds(make: _Make, rounds: int) -> list[float]:
    run = make()
    for _ in range(_WARM_UP):
        run()
    return time_interleaved({"": run}, rounds)[""]
