"""Entry point of `python -m experiments.report`; see `experiments.report.build`."""

import sys

from experiments.report.build import main

if __name__ == "__main__":
    sys.exit(main())
