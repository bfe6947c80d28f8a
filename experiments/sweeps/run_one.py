r"""Executes one job of a sweep: trains or resumes a run, and appends its row.

python -m experiments.sweeps.run_one --sweep=branches --name=both --seed=0 \
    --protocol=cifar10_short \
    --workdir=runs/sweeps/1a2b3c4d5e6f --results=experiments/results [--config.field=value ...]

Exit codes are listed in `repvgg_jax.errors`.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax

from experiments.sweeps import workdirs
from experiments.sweeps.expand import Run, expand, parse_overrides
from experiments.sweeps.flags import Parser, path_type, run_command, writing
from experiments.sweeps.jobs import STOPPED
from experiments.sweeps.rows import (
    INFO_FILE,
    is_finished,
    make_row,
    read_info,
    read_sweeps,
    row_key,
    sweep_fields,
)
from repvgg_jax.cli.train import run_train
from repvgg_jax.config.workdir import lock_run
from repvgg_jax.errors import RunError, Stopped, UsageError, one_line
from repvgg_jax.runtime.devices import cpu_cores, explaining_exhausted_memory
from repvgg_jax.runtime.files import append_row, write_json
from repvgg_jax.runtime.messages import show_messages
from repvgg_jax.runtime.processes import (
    all_processes,
    exiting_on_error,
    join_processes,
    prepare_process,
    primary,
    sync_processes,
)
from repvgg_jax.training.train import WITH_LESS_MEMORY
from repvgg_jax.version import git_commit


def execute(run: Run, workdir: Path, results: Path) -> None:
    """Trains the run if it is not finished, and appends its row if that is missing."""
    if workdir.name != run.config_hash:
        raise UsageError(f"--workdir={workdir}: must end in the run's hash, {run.config_hash}")
    if primary():
        workdirs.make(run, workdir.parent)
    sync_processes("workdir of the sweep made")
    exhausted = explaining_exhausted_memory(WITH_LESS_MEMORY)
    with lock_run(workdir), _recorded_errors(workdir), exhausted:
        if not all_processes(is_finished(run, workdir)):
            if primary():
                with writing(workdir):
                    workdirs.clear_error(workdir)
                    write_info(workdir)
            run_train(run.config(), workdir)
        if primary():
            record(run, workdir, results)


@contextmanager
def _recorded_errors(workdir: Path) -> Iterator[None]:
    """Stores the message of an error in the workdir, for `experiments.status`."""

    def write(error: Exception) -> None:
        expected = isinstance(error, RunError)
        line = str(error) if expected else f"{type(error).__name__}: {one_line(error)}"
        workdirs.write_error(workdir, line)

    with exiting_on_error(write):
        try:
            yield
        except Exception as error:
            if jax.process_count() == 1:
                write(error)
            raise


def record(run: Run, workdir: Path, results: Path) -> None:
    """Appends a finished run's row to its sweep's file, unless it exists.

    If another sweep has a row of this run, it is copied, since the workdir may have been deleted.
    """
    path = results / f"{run.sweep}.jsonl"
    rows = [row for row in read_sweeps(results) if row["config_hash"] == run.config_hash]
    fields = sweep_fields(run)
    if row_key(fields) not in map(row_key, rows):
        append_row(path, rows[0] | fields if rows else make_row(run, workdir))


def write_info(workdir: Path) -> None:
    """Writes `run.json`: commits, cores and the startup time.

    It is written right before training, so that a killed run has it too.
    """
    before = read_info(workdir)
    code = git_commit()
    earlier = dict.fromkeys([*before.get("earlier_commits", []), before.get("commit")])
    info = {
        "commit": code["commit"],
        "dirty": before.get("dirty") or code["dirty"],
        "earlier_commits": [c for c in earlier if c not in (None, code["commit"])],
        "cores": cpu_cores(),
        "startup_seconds": _process_seconds(),
    }
    write_json(workdir / INFO_FILE, info)


def _process_seconds() -> float | None:
    """Returns the seconds since this process started; None without Linux's /proc."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # after boot; proc_pid_stat(5)
    return round(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 2)


def parse(argv: Sequence[str]) -> tuple[Run, Path, Path]:
    """Returns the run that the flags describe, its workdir and the folder of results."""
    parser = Parser(__doc__)
    parser.add_argument("--sweep", required=True, help="name of the sweep")
    parser.add_argument("--name", required=True, help="name of the variant")
    parser.add_argument("--protocol", required=True, help="config that the variant changes")
    parser.add_argument("--seed", required=True, type=int, help="seed of the run")
    parser.add_argument("--workdir", required=True, type=path_type, help="folder to train in")
    parser.add_argument("--results", required=True, type=path_type, help="folder of result rows")
    options, rest = parser.parse_known_args(argv)
    fields = parse_overrides(rest)
    [run] = expand(options.sweep, options.protocol, [options.seed], fields, [options.name])
    return run, options.workdir, options.results


def main(argv: Sequence[str]) -> int:
    """Executes the job and returns the exit code."""

    def command() -> None:
        run, workdir, results = parse(argv)
        prepare_process(run.config().train.deterministic)
        join_processes()
        with exiting_on_error():
            execute(run, workdir, results)

    try:
        return run_command(command)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("interrupted; rerun to resume from the last checkpoint, if any", file=sys.stderr)
        return STOPPED
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    show_messages()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.exit(code)
