"""Measures the figures of README.md on this machine's device: `make bench`.

  python -m experiments.benchmarks

On a CPU: `experiments.benchmarks.pytorch`, then `experiments.benchmarks.onnxruntime`. Elsewhere:
`experiments.benchmarks.gpu`. Each has its own flags and --help.
"""

import os
import subprocess
import sys

from experiments.sweeps.flags import Parser
from repvgg_jax.runtime.devices import devices_here

_ON_GPU = [["gpu"]]
_ON_CPU = [
    ["pytorch"],
    ["onnxruntime", "--constant", "--keep_freed_memory", "--patience=20"],
]


def main() -> int:
    """Runs the benchmarks of this machine's device; returns the first exit code that is not 0."""
    Parser(__doc__).parse_args()
    on_cpu = devices_here(os.environ)[0] == "cpu"
    codes = [
        subprocess.run([sys.executable, "-m", f"experiments.benchmarks.{name}", *flags]).returncode
        for name, *flags in (_ON_CPU if on_cpu else _ON_GPU)
    ]
    return next(filter(None, codes), 0)


if __name__ == "__main__":
    sys.exit(main())
