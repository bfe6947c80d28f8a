"""The launcher `local`: processes on this machine, one for each device."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from experiments.sweeps.jobs import HELD, STOPPED_CODES, Job
from experiments.sweeps.launchers.base import LauncherOptions
from experiments.sweeps.workdirs import (
    LOG_FILE,
    clear_error,
    last_error,
    record_failure,
    workdir_of,
)
from repvgg_jax.errors import RunError, Stopped, UsageError
from repvgg_jax.runtime.devices import devices_here
from repvgg_jax.runtime.lock import lock_holder

FLAGS = {"processes"}
_POLL_SECONDS = 0.2
_ENDS = ("finished", "failed", "skipped", "stopped")


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen
    slot: int
    started: float


def device_environment(
    platform: str, indices: Sequence[str], slot: int, slots: int
) -> dict[str, str]:
    """Returns environment variables that give a child one device, shared if slots exceed devices.

    `slot` is the child's index, and `indices` the devices of the platform: "cpu", "cuda" or "tpu".
    """
    if platform == "cpu":
        return {}
    index = indices[slot % len(indices)]
    if platform == "tpu":
        return {
            "TPU_VISIBLE_CHIPS": index,
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_BOUNDS": "1,1,1",
        }
    environment = {"CUDA_VISIBLE_DEVICES": index}
    sharing = -(-slots // len(indices))
    if sharing > 1:
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.2f}"
    return environment


def cores(platform: str, slot: int, slots: int) -> set[int]:
    """Returns the CPU cores of a child; empty if it may use any.

    Two runs with one core each finish sooner than two that compete for both cores, or that run one
    after the other on both, since parts of a small net's step use only one core.
    """
    if platform != "cpu" or not hasattr(os, "sched_getaffinity"):
        return set()
    available = sorted(os.sched_getaffinity(0))
    return set(available[slot::slots]) if 1 < slots <= len(available) else set()


def check(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Raises UsageError if there are more processes than TPU chips, which cannot be shared."""
    platform, indices = devices_here(os.environ)
    if platform != "cpu" and not indices:
        raise UsageError(
            f"JAX_PLATFORMS={platform}, but this machine has no such device; unset it, or set it "
            "to cpu"
        )
    if platform != "tpu":
        return
    if (options.processes or 1) > len(indices):
        raise UsageError(
            f"--processes={options.processes}: must be at most {len(indices)}, one per TPU chip"
        )


def launch(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Runs the jobs, `options.processes` at a time; by default one for each device, one on a CPU.

    If a job fails, the others still run. SIGINT and SIGTERM are passed on: the children save and
    stop, and no further job is started.

    Raises:
      RunError: at the end, if jobs failed, with the last error of each.
      Stopped: after SIGINT or SIGTERM.
    """
    platform, indices = devices_here(os.environ)
    slots = options.processes or max(1, len(indices))
    waiting, running = list(jobs), []
    ends: dict[str, list[Job]] = {end: [] for end in _ENDS}
    with _caught_signals() as caught, _terminated_at_exit(running):
        forwarded = 0
        while running or (waiting and not caught):
            if not caught:
                free = sorted(set(range(slots)) - {child.slot for child in running})
                for slot in free[: len(waiting)]:
                    environment = device_environment(platform, indices, slot, slots)
                    own_cores = cores(platform, slot, slots)
                    running.append(_start(waiting.pop(0), slot, environment, own_cores))
            if len(caught) > forwarded:
                forwarded = len(caught)
                for child in running:  # SIGTERM; a terminal sends SIGINT to the children itself
                    child.process.terminate()
            time.sleep(_POLL_SECONDS)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                ends[_report_end(child)].append(child.job)
    counts = ", ".join(f"{len(found)} {end}" for end, found in ends.items() if found)
    print(f"{len(jobs)} runs: {counts or 'none started'}", flush=True)
    if caught:
        raise Stopped(f"stopped by {signal.Signals(caught[0]).name}; rerun to resume")
    if failed := ends["failed"]:
        errors = "; ".join(f"{j.name}: {last_error(workdir_of(j.command))}" for j in failed)
        raise RunError(f"{len(failed)} of {len(jobs)} runs failed: {errors}")


@contextmanager
def _terminated_at_exit(running: Sequence[_Child]) -> Iterator[None]:
    """Terminates children that are still running at exit, when no signal reaches them any more."""
    try:
        yield
    finally:
        for child in running:
            child.process.terminate()
        for child in running:
            child.process.wait()


def _start(job: Job, slot: int, environment: dict[str, str], cores: set[int]) -> _Child:
    folder = workdir_of(job.command)
    command = [sys.executable if word == "python" else word for word in job.command]
    try:
        clear_error(folder)
        log = (folder / LOG_FILE).open("ab")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror})") from None
    with log:
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if cores:  # set before the process has threads
        os.sched_setaffinity(process.pid, cores)
    print(f"{job.name} started, output in {folder / LOG_FILE}", flush=True)
    return _Child(job, process, slot, time.monotonic())


def _report_end(child: _Child) -> str:
    """Prints and returns how a job ended, which is one of `_ENDS`."""
    code = child.process.returncode
    folder = workdir_of(child.job.command)
    ends = {0: "finished", HELD: "skipped", **dict.fromkeys(STOPPED_CODES, "stopped")}
    end = ends.get(code, "failed")
    line = f"{child.job.name} {end} after {time.monotonic() - child.started:.0f} s"
    if end == "failed":
        line += f": {record_failure(folder, code)}"
    elif end == "skipped":
        line += f": locked by {lock_holder(folder) or 'another process'}"
    print(line, flush=True)
    return end


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, which would otherwise end this process but not its children."""
    caught: list[int] = []
    former = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield caught
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
