"""Entry point of `python -m experiments.status`; see `experiments.sweeps.status`."""

import sys

from experiments.sweeps.status import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
