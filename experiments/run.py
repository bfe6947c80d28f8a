"""Entry point of `python -m experiments.run`; see `experiments.sweeps.run`."""

import sys

from experiments.sweeps.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
