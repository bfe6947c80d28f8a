"""The launcher `local`: processes of this machine, one a device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from experiments.sweeps.jobs import HELD, STOPPED_CODES, Job
from experiments.sweeps.launchers import LauncherOptions
from experiments.sweeps.workdirs import (
    LOG_FILE,
    forget_last_words,
    held_by,
    keep_last_words,
    last_words,
    of_command,
)
from repvgg_jax.errors import RunError, Stopped, UsageError
from repvgg_jax.runtime.devices import devices_here

FLAGS = {"processes"}
_POLL_SECONDS = 0.2
_ENDS = ("finished", "failed", "held", "stopped")


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen
    slot: int
    started: float


def device_environment(platform: str, indices: Sequence[str], slot: int, slots: int) -> dict:
    """What a child is told of the one device that is its own, or shared where slots are more."""
    if platform == "cpu":
        return {}
    index = indices[slot % len(indices)]
    if platform == "tpu":
        one = "1,1,1"
        bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": one, "TPU_PROCESS_BOUNDS": one}
        return {"TPU_VISIBLE_CHIPS": index, **bounds}
    sharing = -(-slots // len(indices))
    fraction = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing:.2f}"} if sharing > 1 else {}
    return {"CUDA_VISIBLE_DEVICES": index, **fraction}


def cores(platform: str, slot: int, slots: int) -> set[int]:
    """The CPU cores of a child, which shares none; the empty set where it may use any.

    Two runs of a core each finish sooner than two that fight for both cores, and than one after the
    other with both: steps of small nets have parts that one core computes.
    """
    if platform != "cpu" or not hasattr(os, "sched_getaffinity"):
        return set()
    mine = sorted(os.sched_getaffinity(0))
    return set(mine[slot::slots]) if 1 < slots <= len(mine) else set()


def check(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Raises UsageError for more processes than chips of a TPU, of which each has one process."""
    platform, indices = devices_here(os.environ)
    if platform != "tpu":
        return
    if not indices:
        raise UsageError("JAX_PLATFORMS=tpu, and no chip of a TPU is here; unset it")
    if (options.processes or 1) > len(indices):
        raise UsageError(
            f"--processes={options.processes}: {len(indices)} at most, as a TPU's chip is one "
            "process's alone"
        )


def launch(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Runs the jobs, `options.processes` at a time; by default one a device, one on a CPU.

    A failed job doesn't keep the others from running. SIGINT and SIGTERM are passed on: the
    children save and stop, and no other is started.

    Raises:
      RunError: at the end, where jobs failed, with the last words of each.
      Stopped: where it was told to stop.
    """
    platform, indices = devices_here(os.environ)
    slots = options.processes or max(1, len(indices))
    waiting, running, ends = list(jobs), [], {end: [] for end in _ENDS}
    with _signals() as caught, _leaving_none_behind(running):
        passed_on = 0
        while running or (waiting and not caught):
            free = sorted(set(range(slots)) - {child.slot for child in running})
            for slot in free[: len(waiting)] if not caught else ():
                given = device_environment(platform, indices, slot, slots)
                running.append(_start(waiting.pop(0), slot, given, cores(platform, slot, slots)))
            if len(caught) > passed_on:
                passed_on = len(caught)
                for child in running:  # a SIGTERM: the terminal's SIGINT they have got themselves
                    child.process.terminate()
            time.sleep(_POLL_SECONDS)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                ends[_end(child)].append(child.job)
    counts = ", ".join(f"{len(found)} {end}" for end, found in ends.items() if found)
    print(f"{len(jobs)} runs: {counts or 'none started'}", flush=True)
    if caught:
        raise Stopped(f"stopped by {signal.Signals(caught[0]).name}; the same command goes on")
    if ends["failed"]:
        words = (f"{job.name}: {last_words(of_command(job.command))}" for job in ends["failed"])
        raise RunError(f"{len(ends['failed'])} of {len(jobs)} runs failed: {'; '.join(words)}")


@contextmanager
def _leaving_none_behind(running: Sequence[_Child]) -> Iterator[None]:
    """What still runs when this fails is told to stop, as nobody would pass signals on to it."""
    try:
        yield
    finally:
        for child in running:
            child.process.terminate()
        for child in running:
            child.process.wait()


def _start(job: Job, slot: int, environment: dict[str, str], cores: set[int]) -> _Child:
    folder = of_command(job.command)
    command = [sys.executable if word == "python" else word for word in job.command]
    try:
        forget_last_words(folder)
        log = (folder / LOG_FILE).open("ab")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to ({error.strerror})") from None
    with log:
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if cores:  # long before it has threads
        os.sched_setaffinity(process.pid, cores)
    print(f"{job.name} started, output in {folder / LOG_FILE}", flush=True)
    return _Child(job, process, slot, time.monotonic())


def _end(child: _Child) -> str:
    code = child.process.returncode
    ends = {0: "finished", HELD: "held", **dict.fromkeys(STOPPED_CODES, "stopped")}
    end, folder, words = ends.get(code, "failed"), of_command(child.job.command), ""
    if end == "failed":
        words = f": {keep_last_words(folder, code)}"
    elif end == "held":
        words = f": {held_by(folder) or 'another process'} had it"
    seconds = time.monotonic() - child.started
    print(f"{child.job.name} {end} after {seconds:.0f} s{words}", flush=True)
    return end


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals caught within, which would else end this process and not its children."""
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
