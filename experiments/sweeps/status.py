"""Shows the progress of a sweep: `python -m experiments.status [SWEEP] [--watch]`.

Lists finished runs with their top-1, running ones with progress and time left, interrupted ones,
and failed ones with the last line of their error. The runs are those of the sweep's last launch
into --workdirs. With any of the flags --protocol, --seeds, --only, --results and --config.FIELD,
they are those that `experiments.run` would start with the same flags. Without SWEEP, prints a line
for each sweep and protocol with rows.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import jax

from experiments.sweeps import workdirs
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.cost import run_length, saved_steps
from experiments.sweeps.expand import PROTOCOLS, Run
from experiments.sweeps.flags import Parser, run_command
from experiments.sweeps.rows import RESULTS, read_report, read_sweeps
from experiments.sweeps.run import parse_sweep, sweep_parser
from repvgg_jax.config.workdir import read_config
from repvgg_jax.errors import UsageError, reraise
from repvgg_jax.runtime.output import output_is_open
from repvgg_jax.training.metrics import METRICS_FILE, read_metrics
from repvgg_jax.training.monitor import clock

_CLEAR = "\x1b[2J\x1b[H"
# Flags that select runs; with any of them, the last launch does not.
_SELECTING = ("--protocol", "--seeds", "--only", "--results", "--config.")


def status(runs: Sequence[Run], root: Path, results: Path) -> str:
    """Returns a table with a line for each run, and the number of runs in each state."""
    rows = {row["config_hash"]: row for row in read_sweeps(results)}
    states = [workdirs.state(run, root, rows.keys()) for run in runs]
    names = [f"{run.name} seed {run.seed}" for run in runs]
    width = max(map(len, names))
    lines = []
    for name, run, state in zip(names, runs, states, strict=True):
        text = detail(run.workdir(root), state, rows.get(run.config_hash))
        lines.append(f"{name:<{width}}  {run.config_hash}  {state:<11}  {text}".rstrip())
    return "\n".join([*lines, f"{runs[0].sweep}, {runs[0].protocol}: {_counts(states)}"])


def detail(workdir: Path, state: str, row: dict[str, Any] | None) -> str:
    """Returns the last column of a run's line."""
    if state == "done":
        top1 = (row or read_report(workdir))["top1"]
        return ", ".join(f"{form.replace('_', ' ')} {value:.2%}" for form, value in top1.items())
    if state == "failed":
        return workdirs.last_error(workdir)
    if state in ("running", "interrupted"):
        return progress(workdir, state == "running")
    return ""


def progress(workdir: Path, running: bool) -> str:
    """Formats the step, as in `step 300/1172`, and the time left if the run is running.

    For an interrupted run, the step is that of the checkpoint from which it would resume.
    """
    path = workdir / METRICS_FILE
    rows = read_metrics(path) if running and path.exists() else []
    last = max((row["step"] for row in rows), default=saved_steps(workdir))
    if not last:
        return "before its first steps"
    try:
        total = run_length(read_config(workdir)).steps
    except UsageError:  # the data are on another machine
        return f"step {last}"
    text = f"step {last}/{total}"
    if last == total:
        return f"{text}, evaluating and fusing" if running else text
    trained = [row for row in rows if row["kind"] == "train"]
    if not trained or trained[-1]["step"] == trained[0]["step"]:
        return text
    first, latest = trained[0], trained[-1]
    step_seconds = (latest["seconds"] - first["seconds"]) / (latest["step"] - first["step"])
    since = max(0.0, time.time() - path.stat().st_mtime)
    return f"{text}, {clock(max(0.0, step_seconds * (total - last) - since))} left"


def overview(root: Path) -> str:
    """Returns a line on each sweep's last launch into these workdirs, and one on the other sweeps.

    A sweep that was not launched has a line for each protocol with rows in the repository.
    """
    read = cache(read_sweeps)
    lines = []
    for sweep in SWEEPS:
        last = workdirs.last_launch(root, sweep)
        protocols = {row["protocol"] for row in read(RESULTS) if row["sweep"] == sweep}
        others = [[f"--protocol={name}"] for name in PROTOCOLS if name in protocols]
        for flags in [last] if last else others or [[]]:
            with _naming_the_launch(root, sweep):
                options, runs = parse_sweep(_parser(), [sweep, *flags])
            recorded = {row["config_hash"] for row in read(options.results)}
            states = [workdirs.state(run, root, recorded) for run in runs]
            if set(states) != {"new"}:
                rows = f"rows in {options.results}"
                lines.append((sweep, options.protocol, _counts(states), rows))
    absent = [sweep for sweep in SWEEPS if sweep not in {line[0] for line in lines}]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    if absent:
        texts.append(f"not started: {', '.join(absent)}")
    return "\n".join(texts)


def _naming_the_launch(root: Path, sweep: str) -> AbstractContextManager[None]:
    """Returns a context that names the file of the last launch in errors of its flags."""

    def failed(error: Exception) -> UsageError:
        return UsageError(
            f"flags of the last launch in {root / sweep}.json: {error}; delete that file"
        )

    return reraise(UsageError, failed)


def _counts(states: Sequence[str]) -> str:
    return ", ".join(f"{states.count(s)} {s}" for s in workdirs.STATES if s in states)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if (seconds := float(text)) > 0:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r}: must be a number of seconds above 0")


def _parser() -> Parser:
    parser = sweep_parser(__doc__)
    parser.add_argument("sweep", nargs="?", help=f"one of {', '.join(SWEEPS)} (default: all)")
    text = "print again every SECONDS (5 if not given) until all runs are done"
    parser.add_argument(
        "--watch", nargs="?", type=_seconds, const=5.0, metavar="SECONDS", help=text
    )
    return parser


def show_status(argv: Sequence[str]) -> None:
    """Prints the table, repeatedly with --watch until all runs are done."""
    parser = _parser()
    options, _ = parser.parse_known_args(argv)
    selecting = [word for word in argv if word.startswith(_SELECTING)]
    if options.sweep is None:
        if selecting or options.watch:
            flag = selecting[0] if selecting else "--watch"
            raise UsageError(f"{flag} needs the name of a sweep: {', '.join(SWEEPS)}")
        print(overview(options.workdirs))
        return
    head, naming = "", nullcontext()
    if not selecting and (last := workdirs.last_launch(options.workdirs, options.sweep)):
        argv = [*argv, *last]
        head = f"last launch: {shlex.join(last)}\n"
        naming = _naming_the_launch(options.workdirs, options.sweep)
    elif not selecting:
        head = f"nothing was launched in {options.workdirs}; rows are in {options.results}\n"
    with naming:
        options, runs = parse_sweep(parser, argv)
    if not options.results.is_dir():
        head += f"{options.results} does not exist: no run has a row\n"
    while True:
        table = status(runs, options.workdirs, options.results)
        clear = _CLEAR if options.watch and sys.stdout.isatty() else ""
        print(clear + head + table, flush=True)
        finished = table.endswith(f": {len(runs)} done")
        if finished or not options.watch or not output_is_open():
            return
        time.sleep(options.watch)


def main(argv: Sequence[str]) -> int:
    """Shows the status and returns the exit code, see `repvgg_jax.errors`."""
    jax.config.update("jax_platforms", "cpu")
    try:
        return run_command(lambda: show_status(argv))
    except KeyboardInterrupt:
        return 0
