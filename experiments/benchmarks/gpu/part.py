"""Runs a part of the benchmark of GPUs, in a process that has the device to itself.

  python -m experiments.benchmarks.gpu.part NAME SIZES

A figure that cannot be measured has a row with `error`, and so has a part that ends early.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import TextIO

from experiments.benchmarks.gpu import jax_part, torch_part, training_part
from experiments.benchmarks.gpu.sizes import Sizes
from experiments.benchmarks.parts import write_rows
from repvgg_jax.runtime.processes import prepare_process

# In the order of the command, which leaves out the last ones if time is short.
PARTS: dict[str, Callable[[Sizes, TextIO], None]] = {
    "repvgg_jax": jax_part.measure,
    "cifar10_short": partial(training_part.measure, "cifar10_short"),
    "pytorch": torch_part.measure_eager,
    "torch.compile": torch_part.measure_compiled,
    "cifar10": partial(training_part.measure, "cifar10"),
}


def main() -> None:
    """Runs the part that the arguments name."""
    name, sizes = sys.argv[1:]
    # As main.py does for training, and not where compile times are measured.
    prepare_process(deterministic=False, keep_compiled=name.startswith("cifar10"))
    write_rows(partial(PARTS[name], Sizes(**json.loads(sizes))))


if __name__ == "__main__":
    main()
