"""Runs a part of the comparison, in a process that has the device to itself.

  python -m experiments.studies.comparison.part NAME SIZES

What cannot be measured has a row with `error`, and so has a part that ends early.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import TextIO

from experiments.benchmarks.parts import write_rows
from experiments.studies.comparison import guidelines, kernels, nets
from experiments.studies.comparison.sizes import Sizes
from repvgg_jax.runtime.processes import prepare_process

# In the order of the command, which leaves out the last ones if time is short. Counts take half a
# minute, and kernels and guidelines are small programs; of the nets, each group adds its rows.
PARTS: dict[str, Callable[[Sizes, TextIO], None]] = {
    nets.COUNTS: nets.count,
    kernels.KERNELS: kernels.measure,
    guidelines.GUIDELINES: guidelines.measure,
    nets.FORWARD: nets.measure_forward,
    nets.STEP: nets.measure_steps,
}


def main() -> None:
    """Runs the part that the arguments name."""
    name, sizes = sys.argv[1:]
    prepare_process(deterministic=False, keep_compiled=False)
    write_rows(partial(PARTS[name], Sizes(**json.loads(sizes))))


if __name__ == "__main__":
    main()
