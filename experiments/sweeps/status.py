"""How far a sweep is: `python -m experiments.status SWEEP [--watch]`.

Done runs with their top-1, running ones with progress and time left, interrupted ones, and failed
ones with the last line of their error. Takes the fields that `experiments.run` was given too, as
they say which runs are meant.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from experiments.sweeps import workdirs
from experiments.sweeps.cost import saved_steps, steps_of
from experiments.sweeps.expand import Run
from experiments.sweeps.rows import REPORT_FILE, read_sweeps
from experiments.sweeps.run import parse_sweep, sweep_parser
from repvgg_jax.config.workdir import read_config
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.training.metrics import METRICS_FILE, read_metrics
from repvgg_jax.training.monitor import clock

_CLEAR = "\x1b[2J\x1b[H"


def status(runs: Sequence[Run], root: Path, results: Path) -> str:
    """The table, a line a run, and how many are in which state."""
    rows = {row["config_hash"]: row for row in read_sweeps(results)}
    states = [workdirs.state(run, root, rows.keys()) for run in runs]
    names = [f"{run.name} seed {run.seed}" for run in runs]
    width = max(map(len, names))
    lines = [
        f"{name:<{width}}  {run.config_hash}  {state:<11}  "
        f"{detail(run.workdir(root), state, rows.get(run.config_hash))}".rstrip()
        for name, run, state in zip(names, runs, states, strict=True)
    ]
    counts = ", ".join(f"{states.count(s)} {s}" for s in workdirs.STATES if s in states)
    return "\n".join([*lines, f"{runs[0].sweep}, {runs[0].protocol}: {counts}"])


def detail(workdir: Path, state: str, row: dict[str, Any] | None) -> str:
    """What there is to say of a run in this state."""
    if state == "done":
        top1 = (row or json.loads((workdir / REPORT_FILE).read_text()))["top1"]
        return ", ".join(f"{form.replace('_', ' ')} {value:.2%}" for form, value in top1.items())
    if state == "failed":
        return workdirs.last_words(workdir)
    return progress(workdir, state == "running") if state in ("running", "interrupted") else ""


def progress(workdir: Path, running: bool) -> str:
    """`step 300/1172`; of a running run with the time left, by the pace of its curves.

    Where it isn't running, the step is that of the checkpoint from which it would go on.
    """
    path = workdir / METRICS_FILE
    rows = read_metrics(path) if running and path.exists() else []
    last = max((row["step"] for row in rows), default=saved_steps(workdir))
    if not last:
        return "before its first steps"
    try:
        total = steps_of(read_config(workdir))
    except UsageError:  # its data are on another machine
        return f"step {last}"
    words = f"step {last}/{total}"
    if last == total:
        return f"{words}, evaluating and fusing" if running else words
    trained = [row for row in rows if row["kind"] == "train"]
    if not trained or trained[-1]["step"] == trained[0]["step"]:
        return words
    first, latest = trained[0], trained[-1]
    pace = (latest["seconds"] - first["seconds"]) / (latest["step"] - first["step"])
    since = max(0.0, time.time() - path.stat().st_mtime)
    return f"{words}, {clock(max(0.0, pace * (total - last) - since))} left"


def _pause(text: str) -> float:
    with suppress(ValueError):
        if (seconds := float(text)) > 0:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r}: seconds, more than 0")


def main(argv: Sequence[str]) -> int:
    """Prints the table, with --watch again and again until all runs are done."""
    parser = sweep_parser(__doc__)
    words = "again every 5 seconds, or as many as given, until all are done"
    parser.add_argument("--watch", nargs="?", type=_pause, const=5.0, metavar="SECONDS", help=words)
    jax.config.update("jax_platforms", "cpu")
    try:
        options, runs = parse_sweep(parser, argv)
        while True:
            table = status(runs, options.workdirs, options.results)
            clear = _CLEAR if options.watch and sys.stdout.isatty() else ""
            print(clear + table, flush=True)
            if not options.watch or table.endswith(f": {len(runs)} done"):
                return 0
            time.sleep(options.watch)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 0
