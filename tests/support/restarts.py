"""A run that is killed at random moments and resumed.

  python -m tests.support.restarts WORKDIR KILLS

Each start of the run is a fork of this process, which has imported everything but has not
initialized JAX's backend, so that restarts are cheap.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

# Modules that a start would import; none of them initializes JAX's backend.
import matplotlib.backends.backend_agg  # noqa: F401
import sklearn.datasets  # noqa: F401
import tensorboardX  # noqa: F401

from tests.support.runs import tiny_config, train


def config(kills):
    """Returns a config with small steps, an EMA, and frequent evaluations and checkpoints."""
    changes = {
        "train_steps": min(900, 100 * kills),
        "train_checkpoint_every": 15,
        "train_eval_every": 150,
    }
    return tiny_config(**changes, train_log_every=50, optim_ema_decay=0.9)


def start(workdir, kills):
    """Starts the run in a forked process and returns its id."""
    if pid := os.fork():
        return pid
    log = os.open(workdir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        train(config(kills), workdir)
        code = 0
    finally:
        os._exit(code)


def main(workdir, kills):
    """Kills starts of the run within an eighth of the time of a whole run; then lets one end."""
    rng, started = random.Random(0), time.monotonic()
    whole = start(workdir.with_name("whole"), kills)
    assert os.waitpid(whole, 0)[1] == 0, "the undisturbed run failed"
    span, killed = (time.monotonic() - started) / 8, 0
    for _ in range(kills):
        pid = start(workdir, kills)
        time.sleep(rng.uniform(0.02, 1) * span)
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL), "a start failed by itself"
        killed += status == signal.SIGKILL
    assert os.waitpid(start(workdir, kills), 0)[1] == 0, "the last start failed"
    print(f"killed {killed}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
