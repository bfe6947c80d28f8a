"""Entry point of `python -m experiments.comparison`; see `experiments.studies.comparison`."""

import sys

from experiments.studies.comparison.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
