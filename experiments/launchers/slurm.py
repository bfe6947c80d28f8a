"""The launcher `slurm`: one array of jobs, each queued again until its run is finished."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.launchers import Job, LauncherOptions
from repvgg_jax.errors import RunError, UsageError

_STOPPED = 75
_SIGNAL_SECONDS = 120  # before its end that a job is told of it; a checkpoint is written meanwhile
_RESTARTS = 1000  # times that a job may come to its end unfinished


@dataclass
class Command:
    """Runs an argv, in the job that submitit makes of it.

    Slurm's warning, of preemption or of the end of the job's time, comes to submitit as a signal,
    which asks `checkpoint` what to queue: the same command, once its process has saved and ended.
    """

    argv: tuple[str, ...]
    _child: subprocess.Popen | None = field(default=None, repr=False)

    def __call__(self) -> None:
        """Raises RuntimeError unless the command exits with 0."""
        self._child = subprocess.Popen(self.argv)
        # Not `wait`, in which a signal's handler could not poll.
        while (code := self._child.poll()) is None:
            time.sleep(0.2)
        if code:
            stopped = " (told to stop; the same sweep goes on)" if code == _STOPPED else ""
            raise RuntimeError(f"exit code {code}{stopped}: {' '.join(self.argv)}")

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._child.terminate()
            end = time.monotonic() + 0.9 * _SIGNAL_SECONDS
            while self._child.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
        return DelayedSubmission(Command(self.argv))


def launch(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Submits the jobs as one array, `options.processes` of them at a time at most.

    Raises:
      UsageError: where submitit or slurm is missing.
      RunError: with `cluster="local"`, whose jobs are waited for, where some failed.
    """
    submitted = submit(jobs, options)
    for job, handle in zip(jobs, submitted, strict=True):
        print(f"{job.name}: job {handle.job_id}, output in {handle.paths.stdout}", flush=True)
    if options.cluster == "local":
        errors = {job.name: handle.exception() for job, handle in zip(jobs, submitted, strict=True)}
        if failed := {name: error for name, error in errors.items() if error is not None}:
            words = "; ".join(f"{name}: {_reason(error)}" for name, error in failed.items())
            raise RunError(f"{len(failed)} of {len(jobs)} runs failed: {words}")


def submit(jobs: Sequence[Job], options: LauncherOptions) -> list[Any]:
    """submitit's handles of the jobs."""
    if importlib.util.find_spec("submitit") is None:
        raise UsageError("--launcher=slurm needs submitit: pip install submitit")
    if options.cluster not in ("slurm", "local"):
        raise UsageError(f"--cluster={options.cluster}: slurm or local")
    if options.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UsageError(
            "--launcher=slurm: no sbatch is here; start it on a login node, or try it "
            "with --cluster=local"
        )
    import submitit

    executor = submitit.AutoExecutor(
        options.logs, cluster=options.cluster, slurm_max_num_timeout=_RESTARTS
    )
    executor.update_parameters(
        name="repvgg_jax",
        timeout_min=options.minutes,
        cpus_per_task=options.cpus,
        gpus_per_node=options.gpus if options.cluster == "slurm" else 0,
        slurm_array_parallelism=options.processes or len(jobs),
        slurm_signal_delay_s=_SIGNAL_SECONDS,
        slurm_additional_parameters={"requeue": True},
        **({"slurm_partition": options.partition} if options.partition else {}),
    )
    with executor.batch():
        return [executor.submit(Command(_argv(job))) for job in jobs]


def _reason(error: Exception) -> str:
    """The line of submitit's words that says what happened in the job."""
    lines = str(error).strip().splitlines()
    return next((line for line in reversed(lines) if "Error: " in line), lines[0])


def _argv(job: Job) -> tuple[str, ...]:
    """With the interpreter that submits, whose environment the nodes share."""
    return tuple(sys.executable if word == "python" else word for word in job.command)
