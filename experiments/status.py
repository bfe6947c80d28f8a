"""Entry point of `python -m experiments.status`; see `experiments.sweeps.status`."""

import signal
import sys

from experiments.sweeps.status import main

if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is not an error
    sys.exit(main(sys.argv[1:]))
