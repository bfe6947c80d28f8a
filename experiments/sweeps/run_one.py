"""What one job of a sweep does: train, or go on training, and append the row.

python -m experiments.sweeps.run_one --sweep=branches --name=both --seed=0 \\
    --protocol=cifar10_short \\
    --workdir=runs/sweeps/1a2b3c4d5e6f --results=experiments/results [--config.field=value ...]

Exit codes: 0 finished; 75 told to stop, and resumable by the same command; 73 the run is another
process's; 2 a mistake of the user's; 3 a run that cannot go on; 1 an error of ours.
"""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from experiments.sweeps import workdirs
from experiments.sweeps.expand import Run, expand, parse_overrides
from experiments.sweeps.flags import Parser
from experiments.sweeps.jobs import STOPPED
from experiments.sweeps.rows import (
    ABOUT_FILE,
    append_row,
    cpu_cores,
    finished,
    place,
    place_key,
    read_about,
    read_sweeps,
    row_of,
)
from repvgg_jax.bench import aot
from repvgg_jax.cli.train import run_train
from repvgg_jax.errors import RunError, Stopped, UsageError, one_line
from repvgg_jax.runtime.compilation import temporaries_bytes
from repvgg_jax.runtime.files import write_json
from repvgg_jax.runtime.processes import (
    all_processes,
    join_processes,
    leaving_at_once,
    prepare_process,
    primary,
    sync_processes,
)

ROOT = Path(__file__).parents[2]
# Results are committed too, and a new row is not a change of the code.
_CODE = (".", ":!experiments/results")


def execute(run: Run, workdir: Path, results: Path) -> None:
    """Trains where the run isn't finished, and appends its row where that isn't there.

    Raises:
      UsageError: where the workdir is not this run's, or held by another process.
      Stopped, RunError: as `run_train`.
    """
    if workdir.name != run.config_hash:
        raise UsageError(f"--workdir={workdir}: must end in the run's hash, {run.config_hash}")
    if primary():
        workdirs.make(run, workdir.parent)
    sync_processes("workdir of the sweep made")
    with workdirs.locked(workdir) if primary() else nullcontext(), _leaving_last_words(workdir):
        if not all_processes(finished(run, workdir)):
            if primary():
                workdirs.forget_last_words(workdir)
                write_about(run.config(), workdir)
            run_train(run.config(), workdir)
        if primary():
            record(run, workdir, results)


@contextmanager
def _leaving_last_words(workdir: Path) -> Iterator[None]:
    """What a failure within says stays in the workdir, for `experiments.status`."""

    def leave(error: Exception) -> None:
        known = isinstance(error, RunError)
        line = str(error) if known else f"{type(error).__name__}: {one_line(error)}"
        workdirs.leave_last_words(workdir, line)

    with leaving_at_once(leave):
        try:
            yield
        except Exception as error:
            if jax.process_count() == 1:
                leave(error)
            raise


def record(run: Run, workdir: Path, results: Path) -> None:
    """Appends a finished run's row to its sweep's file, unless it is there.

    A run that has a row in another place was run for that, and its workdir may be gone.
    """
    path = results / f"{run.sweep}.jsonl"
    rows = [row for row in read_sweeps(results) if row["config_hash"] == run.config_hash]
    if place_key(place(run)) not in map(place_key, rows):
        append_row(path, rows[0] | place(run) if rows else row_of(run, workdir))


def write_about(config: ConfigDict, workdir: Path) -> None:
    """What the row says of this code and device, written before training so that no kill loses it.

    The memory is the compiled step's, which is the same at every start.
    """
    before, code = read_about(workdir), git_commit()
    temporaries = before.get("temporaries_bytes")
    # Compiling for several processes may wait for the others, who are not here.
    alone = jax.process_count() == 1 and config.optim.repoptimizer_from is None
    if temporaries is None and alone:
        temporaries = temporaries_bytes(aot.compile_step(config, jax.devices()))
    earlier = [*before.get("earlier_commits", []), before.get("commit")]
    earlier = [commit for commit in dict.fromkeys(earlier) if commit not in (None, code["commit"])]
    about = {"earlier_commits": earlier, "cores": cpu_cores(), "temporaries_bytes": temporaries}
    about["dirty"] = before.get("dirty") or code["dirty"]
    write_json(workdir / ABOUT_FILE, code | about)


def git_commit() -> dict[str, Any]:
    """The code's commit, and whether files that git knows differ from it; None without git."""

    def git(*arguments: str) -> str:
        # Also where it is another user's, as in a container.
        command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", *_CODE)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def parse(argv: Sequence[str]) -> tuple[Run, Path, Path]:
    """The run that the flags describe, its workdir, and the folder of results."""
    parser = Parser(__doc__)
    for name in ("sweep", "name", "protocol"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", required=True, type=int)
    for name in ("workdir", "results"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    options, rest = parser.parse_known_args(argv)
    fields = parse_overrides(rest)
    [run] = expand(options.sweep, options.protocol, [options.seed], fields, [options.name])
    return run, options.workdir, options.results


def main(argv: Sequence[str]) -> int:
    """The exit code, as above."""
    logging.set_verbosity(logging.WARNING)
    try:
        run, workdir, results = parse(argv)
        prepare_process(run.config().train.deterministic)
        join_processes()
        with leaving_at_once():
            execute(run, workdir, results)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return STOPPED
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return STOPPED
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.exit(code)
