"""Runs a sweep: `python -m experiments.run SWEEP --launcher=local [--config.data.data_dir=...]`.

The same command resumes after any interruption: finished runs are skipped, interrupted ones resume,
failed ones wait for --retry_failed. --dry_run lists the runs and their cost. Any field of
configs/default.py can be set for all runs: --config.train.epochs=1. `python -m experiments.status
SWEEP` shows the progress. Exit codes are listed in `repvgg_jax.errors`.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.sweeps import workdirs
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.cost import Length, RemainingCost, remaining_cost, run_length
from experiments.sweeps.expand import (
    PROTOCOLS,
    SEEDS,
    Run,
    count,
    expand,
    join_errors,
    parse_overrides,
    variant_errors,
)
from experiments.sweeps.flags import Parser, integers, path_type, run_command
from experiments.sweeps.jobs import Job
from experiments.sweeps.launchers.base import (
    LAUNCHERS,
    LauncherOptions,
    add_flags,
    check_folders,
    launcher,
)
from experiments.sweeps.rows import RESULTS, read_sweeps, row_key, sweep_fields
from experiments.sweeps.run_one import record
from repvgg_jax.errors import RunError, Stopped, UsageError
from repvgg_jax.runtime.lock import lock_holder

WORKDIRS = Path("runs/sweeps")
TO_RUN = ("interrupted", "new")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[Run], LauncherOptions]:
    """Returns the options, the runs and the launcher's options of a command line."""
    parser = sweep_parser(__doc__)
    parser.add_argument("sweep", help=f"one of {', '.join(SWEEPS)}")
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, default="local", help="where to run (default: local)"
    )
    parser.add_argument("--retry_failed", action="store_true", help="run failed runs again")
    parser.add_argument("--dry_run", action="store_true", help="list runs and cost, start nothing")
    add_flags(parser)
    options, runs = parse_sweep(parser, argv)
    names = vars(LauncherOptions())
    given = {name: value for name, value in vars(options).items() if name in names}
    if unused := given.keys() - launcher(options.launcher).FLAGS:
        flags = ", ".join(f"--{name}" for name in sorted(unused))
        raise UsageError(
            f"--launcher={options.launcher} does not use {flags}; see docs/guides/sweeps.md"
        )
    return options, runs, LauncherOptions(**given)


def sweep_parser(description: str | None) -> Parser:
    """Returns a parser with the flags that select runs and their folders."""
    parser = Parser(description)
    parser.add_argument(
        "--protocol",
        default="cifar10_short",
        help=f"config that the variants change: {' or '.join(PROTOCOLS)} (default: cifar10_short)",
    )
    parser.add_argument(
        "--seeds", type=integers, default=SEEDS, help="seeds, comma-separated (default: 0,1,2)"
    )
    parser.add_argument(
        "--only", type=_names, default=(), help="variants, comma-separated (default: all)"
    )
    parser.add_argument(
        "--results",
        type=path_type,
        default=RESULTS,
        help=f"folder of result rows (default: {RESULTS})",
    )
    parser.add_argument(
        "--workdirs",
        type=path_type,
        default=WORKDIRS,
        help=f"folder of workdirs (default: {WORKDIRS})",
    )
    return parser


def parse_sweep(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[Run]]:
    """Returns the flags and the runs that they select."""
    options, rest = parser.parse_known_args(argv)
    fields = parse_overrides(rest)
    options.fields = rest
    return options, expand(options.sweep, options.protocol, options.seeds, fields, options.only)


def selecting_flags(options: argparse.Namespace) -> list[str]:
    """Returns the flags that select the same runs again, and where their rows are."""
    flags = [f"--protocol={options.protocol}", f"--seeds={','.join(map(str, options.seeds))}"]
    if options.only:
        flags.append(f"--only={','.join(options.only)}")
    return [*flags, f"--results={options.results}", *options.fields]


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r}: must be comma-separated names: none,both")
    return names


def job_of(run: Run, options: argparse.Namespace) -> Job:
    """Returns the job that executes one run."""
    flags = {
        "sweep": run.sweep,
        "name": run.name,
        "seed": run.seed,
        "protocol": run.protocol,
        "workdir": run.workdir(options.workdirs),
        "results": options.results,
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    command = ("python", "-m", "experiments.sweeps.run_one", *words, *options.fields)
    return Job(run.job_name, command, programs=run.name)  # seeds are arguments of the programs


def lengths_of_runs(runs: Sequence[Run], needed: bool) -> dict[str, Length]:
    """Returns the lengths of runs by config hash, except of runs whose data cannot be used here.

    Raises:
      UsageError: if there are any and the data are needed on this machine.
    """
    lengths: dict[str, Length] = {}
    problems: dict[str, list[str]] = {}
    for run in runs:
        try:
            lengths[run.config_hash] = run_length(run.config())
        except UsageError as error:
            names = problems.setdefault(str(error), [])
            if run.name not in names:
                names.append(run.name)
    if problems and needed:
        raise UsageError(join_errors(variant_errors(runs[0].sweep, problems)))
    for problem in problems:
        print(f"not checked: {problem}; the data must be available where the jobs run")
    return lengths


def table(runs: Sequence[Run], states: Sequence[str], costs: Sequence[RemainingCost | None]) -> str:
    """Returns a line for each run, and the total cost of those still to run."""
    width = max(len(run.job_name) for run in runs)
    lines = [f"{'run':<{width}}  {'state':<11}  expected"]
    for run, state, cost in zip(runs, states, costs, strict=True):
        text = "-" if state == "done" else "unknown"
        if state != "done" and cost is not None:
            text = f"{'about ' if cost.guesses else ''}{cost.seconds:,.0f} s"
        lines.append(f"{run.job_name:<{width}}  {state:<11}  {text}")
    counts = ", ".join(f"{states.count(s)} {s}" for s in workdirs.STATES if s in states)
    to_run = [cost for cost, state in zip(costs, states, strict=True) if state in TO_RUN]
    summary = f"{len(to_run)}, {_total(to_run)}" if to_run else "none"
    return "\n".join([*lines, f"{counts}; to run: {summary}"])


def _total(costs: Sequence[RemainingCost | None]) -> str:
    """Formats the cost of all runs in device hours, or minutes if there are few."""
    known = [cost for cost in costs if cost is not None]
    if not known:
        return "unknown cost"
    hours = sum(cost.device_hours for cost in known)
    length = f"{hours:.1f} device hours" if hours >= 2 else f"{60 * hours:.1f} device minutes"
    text = f"{length}, measured on {known[0].device}"
    guesses = Counter(guess for cost in known for guess in cost.guesses)
    if guesses:
        parts = (f"{guess} ({count(n, 'run')})" for guess, n in guesses.items())
        text += f"; guessed: {', '.join(parts)}"
    if unknown := len(costs) - len(known):
        text += f"; and {count(unknown, 'run')} of unknown length"
    return text


def run_sweep(argv: Sequence[str]) -> None:
    """Checks everything, then launches the runs that are not finished, running or failed."""
    options, runs, launcher_options = parse(argv)
    if options.launcher == "local":
        check_folders(options.workdirs, options.results)
    rows = read_sweeps(options.results)
    recorded = {row["config_hash"] for row in rows}
    keys = set(map(row_key, rows))
    states = [workdirs.state(run, options.workdirs, recorded) for run in runs]
    if options.retry_failed:
        states = ["interrupted" if state == "failed" else state for state in states]
    left = [run for run, state in zip(runs, states, strict=True) if state != "done"]
    starts_here = options.launcher == "local" and not options.dry_run
    lengths = lengths_of_runs(left, needed=starts_here)
    # A new folder has no rows yet, and a cluster's may not be visible from here.
    others = read_sweeps(RESULTS) if options.results != RESULTS else []
    costs = [
        remaining_cost(
            run, run.workdir(options.workdirs), lengths.get(run.config_hash), rows, others
        )
        if state != "done"
        else None
        for run, state in zip(runs, states, strict=True)
    ]
    print(table(runs, states, costs), flush=True)
    if not left:
        print(f"rows are in {options.results}; use other --results and --workdirs to train again")
    for run, state in zip(runs, states, strict=True):
        folder = run.workdir(options.workdirs)
        if state == "failed":
            error = workdirs.last_error(folder)
            print(f"{run.job_name} failed: {error} (use --retry_failed to run it again)")
        elif state == "running":
            holder = lock_holder(folder) or "another process"
            print(f"{run.job_name} is locked by {holder}")
    to_run = [run for run, state in zip(runs, states, strict=True) if state in TO_RUN]
    chosen = launcher(options.launcher)
    chosen.check([job_of(run, options) for run in runs], launcher_options)
    if options.dry_run:
        return
    if options.launcher != "kubernetes":  # its volume need not be mounted here
        workdirs.remember_launch(options.workdirs, options.sweep, selecting_flags(options))
    for run, state in zip(runs, states, strict=True):
        if state == "done" and row_key(sweep_fields(run)) not in keys:
            record(run, run.workdir(options.workdirs), options.results)  # run by another sweep
    if to_run:
        chosen.launch([job_of(run, options) for run in to_run], launcher_options)
    if failed := states.count("failed"):
        raise RunError(
            f"{count(failed, 'run')} failed earlier; use --retry_failed to run them again"
        )


def main(argv: Sequence[str]) -> int:
    """Runs the sweep and returns the exit code, see `repvgg_jax.errors`."""
    jax.config.update("jax_platforms", "cpu")  # leaves the accelerators to the runs
    try:
        return run_command(lambda: run_sweep(argv))
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 0
