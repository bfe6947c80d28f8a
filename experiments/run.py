"""Run a sweep: `python -m experiments.run SWEEP --launcher=local [--config.data.data_dir=...]`.

The same command goes on after any interruption: finished runs are skipped, interrupted ones resume,
failed ones wait for --retry_failed. --dry_run says what would run, and its cost. Any field of
configs/default.py can be given for all runs: --config.train.epochs=1. `python -m experiments.status
SWEEP` shows how far it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments import workdirs
from experiments.cost import expected_seconds, steps_of
from experiments.launchers import LAUNCHERS, Job, LauncherOptions
from experiments.results import RESULTS, read_sweeps
from experiments.run_one import record
from experiments.sweeps import PROTOCOLS, SEEDS, SWEEPS, Run, expand, parse_overrides
from repvgg_jax.errors import RunError, Stopped, UsageError

WORKDIRS = Path("runs/sweeps")
TO_RUN = ("interrupted", "new")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[Run], LauncherOptions]:
    """What the command line asks for, all of it checked.

    Raises:
      UsageError: listing all that is wrong with the sweep.
    """
    parser = sweep_parser(__doc__)
    parser.add_argument("--launcher", choices=list(LAUNCHERS), default="local")
    parser.add_argument("--retry_failed", action="store_true", help="run failed runs too")
    parser.add_argument("--dry_run", action="store_true", help="only say what would run")
    hints = typing.get_type_hints(LauncherOptions)
    names = [field.name for field in dataclasses.fields(LauncherOptions)]
    for name in names:
        parser.add_argument(f"--{name}", type=_reader(hints[name]), default=argparse.SUPPRESS)
    options, runs = parse_sweep(parser, argv)
    given = {name: value for name, value in vars(options).items() if name in names}
    return options, runs, LauncherOptions(**given)


def sweep_parser(description: str | None) -> argparse.ArgumentParser:
    """Flags that say which runs, and where what they write lies."""
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", help=", ".join(SWEEPS))
    parser.add_argument("--protocol", default="cifar10_short", help=", ".join(PROTOCOLS))
    parser.add_argument("--seeds", type=_numbers, default=SEEDS, help="0,1,2 by default")
    parser.add_argument("--only", type=_words, default=(), help="variants, by commas")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--workdirs", type=Path, default=WORKDIRS)
    return parser


def parse_sweep(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[Run]]:
    """The flags, and the runs that they describe."""
    options, rest = parser.parse_known_args(argv)
    fields = parse_overrides(rest)
    options.fields = [word for word in rest if word.startswith("--config.")]
    return options, expand(options.sweep, options.protocol, options.seeds, fields, options.only)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _reader(hint: object) -> typing.Callable[[str], object]:
    """What reads a flag of a field's type: `int | None` by int."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    if kinds[0] is bool:
        return lambda text: text.lower() in ("1", "true", "yes")
    return kinds[0] if kinds[0] in (int, float, Path) else str


def job_of(run: Run, options: argparse.Namespace, seconds: float | None) -> Job:
    """The command of one run, for whichever launcher."""
    words = {
        "sweep": run.sweep,
        "name": run.name,
        "seed": run.seed,
        "protocol": run.protocol,
        "workdir": run.workdir(options.workdirs),
        "results": options.results,
    }
    flags = [f"--{name}={value}" for name, value in words.items()]
    command = ("python", "-m", "experiments.run_one", *flags, *options.fields)
    return Job(run.job_name, command, seconds)


def check_data(runs: Sequence[Run]) -> None:
    """Raises UsageError where runs' data cannot be used, or are too few for their schedules."""
    problems: dict[str, list[str]] = {}
    for run in runs:
        try:
            steps_of(run.config())
        except UsageError as error:
            problems.setdefault(str(error), []).append(run.name)
    if problems:
        raise UsageError("; ".join(problems))


def table(runs: Sequence[Run], states: Sequence[str], seconds: Sequence[float | None]) -> str:
    """A line a run, and what those that are still to come cost."""
    width = max(len(run.job_name) for run in runs)
    lines = [f"{'run':<{width}}  {'state':<11}  expected"]
    for run, state, cost in zip(runs, states, seconds, strict=True):
        words = "-" if state == "done" else "unknown" if cost is None else f"{cost:,.0f} s"
        lines.append(f"{run.job_name:<{width}}  {state:<11}  {words}")
    costs = [cost for cost, state in zip(seconds, states, strict=True) if state in TO_RUN]
    known = [cost for cost in costs if cost is not None]
    unknown = f", and {len(costs) - len(known)} runs of unknown length" * (len(known) < len(costs))
    counts = ", ".join(f"{states.count(s)} {s}" for s in workdirs.STATES if s in states)
    hours = f"{sum(known) / 3600:.2f} device hours" if known or not costs else "unknown cost"
    return "\n".join([*lines, f"{counts}; to run: {len(costs)}, {hours}{unknown * bool(known)}"])


def run_sweep(argv: Sequence[str]) -> None:
    """Launches what is not finished, held or failed, after checking all of it."""
    options, runs, launcher_options = parse(argv)
    check_data(runs)
    rows = read_sweeps(options.results)
    recorded = {row["config_hash"] for row in rows}
    states = [workdirs.state(run, options.workdirs, recorded) for run in runs]
    if options.retry_failed:
        states = ["interrupted" if state == "failed" else state for state in states]
    seconds = [expected_seconds(run, rows) for run in runs]
    print(table(runs, states, seconds), flush=True)
    for run, state in zip(runs, states, strict=True):
        if state == "failed":
            words = workdirs.last_words(run.workdir(options.workdirs))
            print(f"{run.job_name} failed: {words} (--retry_failed runs it again)")
        elif state == "running":
            print(f"{run.job_name} is held by {workdirs.held_by(run.workdir(options.workdirs))}")
    if options.dry_run:
        return
    jobs = []
    for run, state, cost in zip(runs, states, seconds, strict=True):
        if state in TO_RUN:
            jobs.append(job_of(run, options, cost))
        elif state == "done":  # perhaps by another sweep
            record(run, run.workdir(options.workdirs), options.results)
    if jobs:
        LAUNCHERS[options.launcher](jobs, launcher_options)


def main(argv: Sequence[str]) -> int:
    """The exit code: 2 for a mistake of the user's, 3 where runs failed."""
    # This process looks only: the devices are the children's.
    jax.config.update("jax_platforms", "cpu")
    try:
        run_sweep(argv)
    except Stopped as stop:
        print(stop, file=sys.stderr)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
