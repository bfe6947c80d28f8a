"""Run a sweep: `python -m experiments.run SWEEP --launcher=local [--config.data.data_dir=...]`.

The same command goes on after any interruption: finished runs are skipped, interrupted ones resume,
failed ones wait for --retry_failed. --dry_run says what would run, and its cost. Any field of
configs/default.py can be given for all runs: --config.train.epochs=1. `python -m experiments.status
SWEEP` shows how far it is.
"""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.sweeps import workdirs
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.cost import Cost, expected_cost, steps_of
from experiments.sweeps.expand import (
    PROTOCOLS,
    SEEDS,
    Run,
    expand,
    listed,
    of_variants,
    parse_overrides,
)
from experiments.sweeps.flags import Parser
from experiments.sweeps.jobs import Job
from experiments.sweeps.launchers import LAUNCHERS, LauncherOptions, check_folders, launcher
from experiments.sweeps.rows import RESULTS, place, place_key, read_sweeps
from experiments.sweeps.run_one import record
from repvgg_jax.errors import RunError, Stopped, UsageError

WORKDIRS = Path("runs/sweeps")
TO_RUN = ("interrupted", "new")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[Run], LauncherOptions]:
    """What the command line asks for, all of it checked.

    Raises:
      UsageError: listing all that is wrong with the sweep.
    """
    parser = sweep_parser(__doc__)
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, default="local", help="what runs them; local by default"
    )
    parser.add_argument("--retry_failed", action="store_true", help="run failed runs too")
    parser.add_argument("--dry_run", action="store_true", help="only say what would run")
    hints = typing.get_type_hints(LauncherOptions, include_extras=True)
    of_launchers = parser.add_argument_group("flags of launchers")
    for name, hint in hints.items():
        [help_text] = hint.__metadata__
        default = getattr(LauncherOptions, name)
        help_text += "" if default is None else f" (default: {default})"
        of_launchers.add_argument(
            f"--{name}", type=_reader(hint.__origin__), default=argparse.SUPPRESS, help=help_text
        )
    options, runs = parse_sweep(parser, argv)
    given = {name: value for name, value in vars(options).items() if name in hints}
    if strange := given.keys() - launcher(options.launcher).FLAGS:
        flags = ", ".join(f"--{name}" for name in sorted(strange))
        raise UsageError(
            f"--launcher={options.launcher} takes no {flags}; see docs/guides/sweeps.md"
        )
    return options, runs, LauncherOptions(**given)


def sweep_parser(description: str | None) -> Parser:
    """Flags that say which runs, and where what they write lies."""
    parser = Parser(description)
    parser.add_argument("sweep", help=", ".join(SWEEPS))
    parser.add_argument("--protocol", default="cifar10_short", help=", ".join(PROTOCOLS))
    parser.add_argument("--seeds", type=_numbers, default=SEEDS, help="0,1,2 by default")
    parser.add_argument("--only", type=_words, default=(), help="variants, by commas")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--workdirs", type=Path, default=WORKDIRS, help="folder to train in")
    return parser


def parse_sweep(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[Run]]:
    """The flags, and the runs that they describe."""
    options, rest = parser.parse_known_args(argv)
    fields = parse_overrides(rest)
    options.fields = rest
    return options, expand(options.sweep, options.protocol, options.seeds, fields, options.only)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers with commas, such as 0,1,2") from None


def _words(text: str) -> tuple[str, ...]:
    if not all(words := tuple(text.split(","))):
        raise argparse.ArgumentTypeError(f"{text!r}: names with commas, such as none,both")
    return words


def _reader(hint: object) -> typing.Callable[[str], object]:
    """What reads a flag of a field's type: `int | None` by int."""
    return next(kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None))


def job_of(run: Run, options: argparse.Namespace) -> Job:
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
    command = ("python", "-m", "experiments.sweeps.run_one", *flags, *options.fields)
    return Job(run.job_name, command)


def count_steps(runs: Sequence[Run], elsewhere: bool) -> dict[str, int]:
    """Steps by config hash, without runs whose data, which say so, are only where they run.

    Args:
      runs: of one sweep.
      elsewhere: whether they run on other machines, and their data may be there alone.

    Raises:
      UsageError: where data cannot be used, or are too few for a schedule.
    """
    steps: dict[str, int] = {}
    problems: dict[str, list[str]] = {}
    for run in runs:
        try:
            steps[run.config_hash] = steps_of(run.config())
        except UsageError as error:
            names = problems.setdefault(str(error), [])
            names += [run.name] * (run.name not in names)
    if problems and not elsewhere:
        raise UsageError(listed(of_variants(runs[0].sweep, problems)))
    for problem in problems:
        print(f"not checked: {problem}; the jobs need it where they run")
    return steps


def runs_of(number: int) -> str:
    return f"{number} run{'s' * (number != 1)}"


def table(runs: Sequence[Run], states: Sequence[str], costs: Sequence[Cost | None]) -> str:
    """A line a run, and what those that are still to come cost."""
    width = max(len(run.job_name) for run in runs)
    lines = [f"{'run':<{width}}  {'state':<11}  expected"]
    for run, state, cost in zip(runs, states, costs, strict=True):
        words = "-" if state == "done" else "unknown"
        if state != "done" and cost is not None:
            words = f"{'about ' * cost.guessed}{cost.seconds:,.0f} s"
        lines.append(f"{run.job_name:<{width}}  {state:<11}  {words}")
    coming = [cost for cost, state in zip(costs, states, strict=True) if state in TO_RUN]
    known = [cost for cost in coming if cost is not None]
    lacking = len(coming) - len(known)
    unknown = f", and {runs_of(lacking)} of unknown length" if known and lacking else ""
    counts = ", ".join(f"{states.count(s)} {s}" for s in workdirs.STATES if s in states)
    words = "unknown cost"
    if known:
        words = f"{sum(cost.device_hours for cost in known):.2f} device hours of {known[0].device}"
    if guessed := sum(cost.guessed for cost in known):
        words += f" ({runs_of(guessed)} by other variants' time a multiply-add)"
    if coming:
        return "\n".join([*lines, f"{counts}; to run: {len(coming)}, {words}{unknown}"])
    return "\n".join([*lines, f"{counts}; to run: none"])


def run_sweep(argv: Sequence[str]) -> None:
    """Launches what is not finished, held or failed, after checking all of it."""
    options, runs, launcher_options = parse(argv)
    if options.launcher == "local":
        check_folders(options.workdirs, options.results)
    rows = read_sweeps(options.results)
    recorded = {row["config_hash"] for row in rows}
    places = set(map(place_key, rows))
    states = [workdirs.state(run, options.workdirs, recorded) for run in runs]
    if options.retry_failed:
        states = ["interrupted" if state == "failed" else state for state in states]
    left = [run for run, state in zip(runs, states, strict=True) if state != "done"]
    steps = count_steps(left, elsewhere=options.launcher != "local")
    # A new folder has no rows yet, and a cluster's may not be seen from here.
    others = read_sweeps(RESULTS) if options.results != RESULTS else []
    costs = [
        expected_cost(run, run.workdir(options.workdirs), steps.get(run.config_hash), rows, others)
        if state != "done"
        else None
        for run, state in zip(runs, states, strict=True)
    ]
    print(table(runs, states, costs), flush=True)
    if not left:
        print(f"rows are in {options.results}; other --results and --workdirs train them anew")
    for run, state in zip(runs, states, strict=True):
        if state == "failed":
            words = workdirs.last_words(run.workdir(options.workdirs))
            print(f"{run.job_name} failed: {words} (--retry_failed runs it again)")
        elif state == "running":
            holder = workdirs.held_by(run.workdir(options.workdirs)) or "another process"
            print(f"{run.job_name} is held by {holder}")
    to_run = [run for run, state in zip(runs, states, strict=True) if state in TO_RUN]
    chosen = launcher(options.launcher)
    chosen.check([job_of(run, options) for run in runs], launcher_options)
    if options.dry_run:
        return
    for run, state in zip(runs, states, strict=True):
        if state == "done" and place_key(place(run)) not in places:  # it was run for another
            record(run, run.workdir(options.workdirs), options.results)
    if to_run:
        chosen.launch([job_of(run, options) for run in to_run], launcher_options)
    if failed := states.count("failed"):
        raise RunError(f"{runs_of(failed)} failed before; --retry_failed runs what failed again")


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
