"""The launcher `local`: processes on this machine, one or several for each device."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from experiments.sweeps.expand import count
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
from repvgg_jax.runtime.compilation import FIRST_STEP, programs_folder
from repvgg_jax.runtime.devices import cpu_cores, devices_here
from repvgg_jax.runtime.lock import lock_holder

FLAGS = {"processes"}
_POLL_SECONDS = 0.2
_ENDS = ("finished", "failed", "skipped", "stopped")
# JAX accepts one of them; the second is the former name.
_MEMORY_FRACTION = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_SHARED_MEMORY = 0.9  # the rest is for what each process keeps outside of JAX's memory pool


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen
    slot: int
    started: float
    log_start: int  # size of the log when the process started

    def has_compiled(self) -> bool:
        """Returns True if the run has taken its first step, with its programs in JAX's cache."""
        try:
            with (workdir_of(self.job.command) / LOG_FILE).open("rb") as log:
                log.seek(self.log_start)
                return FIRST_STEP.encode() in log.read()
        except OSError:  # the user may have moved it
            return False


class _Queue:
    """The jobs that have not started, in order.

    Args:
      jobs: all jobs.
      waits: True if a job waits while another one compiles the programs that it needs.
    """

    def __init__(self, jobs: Sequence[Job], waits: bool):
        self.jobs = list(jobs)
        self._waits = waits
        self._compiled: set[str | None] = {None}
        self._announced: set[str | None] = set()

    def pop(self, running: Sequence[_Child]) -> Job | None:
        """Removes and returns the first job that may start; None if all must wait."""
        compiling = {}
        if self._waits:
            compiling = {c.job.programs: c for c in running if c.job.programs not in self._compiled}
        for index, job in enumerate(self.jobs):
            if job.programs not in compiling:
                return self.jobs.pop(index)
        for job in self.jobs:
            if job.programs not in self._announced:
                self._announced.add(job.programs)
                other = compiling[job.programs].job.name
                print(f"{job.name} waits until {other} has compiled their programs", flush=True)
        return None

    def observe(self, running: Sequence[_Child]) -> None:
        """Notes which of the running jobs have compiled their programs."""
        if self._waits and self.jobs:
            new = [child for child in running if child.job.programs not in self._compiled]
            self._compiled |= {child.job.programs for child in new if child.has_compiled()}


def device_environment(
    platform: str, indices: Sequence[str], slot: int, slots: int, given: Mapping[str, str]
) -> dict[str, str]:
    """Returns environment variables that give a child one device, or its share of one.

    Children take turns in choosing a device. Those that share a GPU get equal parts of its memory.

    Args:
      platform: "cpu", "cuda" or "tpu".
      indices: devices of the platform.
      slot: index of the child, from 0 to `slots - 1`.
      slots: number of children at a time.
      given: the user's environment variables; a share of memory that they set is kept.
    """
    if platform == "cpu":
        return {}
    device = slot % len(indices)
    if platform == "tpu":
        return {
            "TPU_VISIBLE_CHIPS": indices[device],
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_BOUNDS": "1,1,1",
        }
    environment = {"CUDA_VISIBLE_DEVICES": indices[device]}
    sharing = len(range(device, slots, len(indices)))
    if sharing > 1 and not any(given.get(name) for name in _MEMORY_FRACTION):
        environment[_MEMORY_FRACTION[0]] = f"{_SHARED_MEMORY / sharing:.3f}"
    return environment


def cores(slot: int, slots: int) -> set[int]:
    """Returns the CPU cores of a child: its share, or all if there are fewer cores than children.

    Thread pools have as many threads as a process has cores. Without shares, the threads of each
    child would compete with those of the others for every core.
    """
    available = sorted(os.sched_getaffinity(0))
    return set(available[slot::slots] if slots <= len(available) else available)


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

    Runs that share a device do not compile the same programs at once: the first one does, and the
    others find them in JAX's cache. If a job fails, the others still run. SIGINT and SIGTERM are
    passed on: the children save and stop, and no further job is started.

    Raises:
      RunError: at the end, if jobs failed, with the last error of each.
      Stopped: after SIGINT or SIGTERM.
    """
    platform, indices = devices_here(os.environ)
    slots = min(options.processes or max(1, len(indices)), len(jobs))
    apart = len(indices) if platform != "cpu" else cpu_cores() or 1  # children that share nothing
    queue = _Queue(jobs, waits=slots > apart and programs_folder() is not None)
    running: list[_Child] = []
    ends: dict[str, list[Job]] = {end: [] for end in _ENDS}
    with _caught_signals() as caught, _terminated_at_exit(running):
        forwarded = 0
        while running or (queue.jobs and not caught):
            if not caught:
                for slot in sorted(set(range(slots)) - {child.slot for child in running}):
                    if (job := queue.pop(running)) is None:
                        break
                    added = device_environment(platform, indices, slot, slots, os.environ)
                    with _on_share_of_cores(slot, slots):
                        running.append(_start(job, slot, added))
            if len(caught) > forwarded:
                forwarded = len(caught)
                for child in running:  # SIGTERM; a terminal sends SIGINT to the children itself
                    child.process.terminate()
            time.sleep(_POLL_SECONDS)
            queue.observe(running)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                ends[_report_end(child)].append(child.job)
    counts = ", ".join(f"{len(found)} {end}" for end, found in ends.items() if found)
    print(f"{count(len(jobs), 'run')}: {counts or 'none started'}", flush=True)
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


@contextmanager
def _on_share_of_cores(slot: int, slots: int) -> Iterator[None]:
    """Restricts this thread to a child's cores, which a process started meanwhile inherits."""
    if not hasattr(os, "sched_setaffinity"):  # Linux only
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores(slot, slots))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _start(job: Job, slot: int, environment: dict[str, str]) -> _Child:
    folder = workdir_of(job.command)
    command = [sys.executable if word == "python" else word for word in job.command]
    try:
        clear_error(folder)
        log = (folder / LOG_FILE).open("ab")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror})") from None
    log_start = log.tell()
    with log:
        process = subprocess.Popen(
            command,
            # Otherwise, what it printed before an error may come after it in the log.
            env=os.environ | environment | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    print(f"{job.name} started, output in {folder / LOG_FILE}", flush=True)
    return _Child(job, process, slot, time.monotonic(), log_start)


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
