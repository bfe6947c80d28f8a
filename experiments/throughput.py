"""Entry point of `python -m experiments.throughput`; see `experiments.benchmarks.throughput`."""

import sys

from experiments.benchmarks.throughput import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
