"""The launcher `slurm`: one array job through submitit, requeued whenever it is preempted."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from experiments.sweeps.jobs import HELD, STOPPED, STOPPED_CODES, Job
from experiments.sweeps.launchers.base import LauncherOptions, check_folders
from experiments.sweeps.workdirs import clear_error, record_failure, workdir_of
from repvgg_jax.errors import RunError, UsageError, one_line

FLAGS = {
    *("processes", "folder", "grace", "restarts", "cluster", "partition", "account", "minutes"),
    *("cpus", "gpus"),
}
_REQUEUE_SECONDS = 10.0  # part of the grace period, reserved for requeueing
_SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


class Requeued:
    """A submitit task that runs a command and is requeued when the job has to stop.

    Before a time limit or a preemption, submitit receives SIGUSR2 and calls `checkpoint`. The
    command receives SIGTERM and has the grace period to save; then the job is queued again, and the
    same command resumes. A SIGTERM alone is passed on but does not requeue the job, since scancel
    sends it too. The task then waits for a SIGUSR2 or SIGKILL, so that a job that SLURM itself is
    about to requeue does not end first.

    Args:
      grace: seconds between the signal and SIGKILL.
    """

    def __init__(self, grace: float):
        self.grace = grace
        self._child: subprocess.Popen | None = None
        self._terminated = False

    def __call__(self, command: Sequence[str]) -> None:
        """Runs the command; raises RunError if it fails."""
        program = sys.executable if command[0] == "python" else command[0]
        with suppress(OSError):  # the command itself will report it
            clear_error(workdir_of(command))
        # No signal may arrive between setting the handler and starting the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            signal.signal(signal.SIGTERM, self._terminate)
            # In its own process group, since SIGUSR2 sent to all processes of a step would end it.
            self._child = subprocess.Popen(
                [program, *command[1:]], process_group=0, preexec_fn=_receive_only_sigterm
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._has_ended(block=True)
        code = self._child.wait()
        if self._terminated and code in STOPPED_CODES:
            time.sleep(self.grace)
            raise RunError("stopped by SIGTERM; the next launch resumes from the checkpoint")
        if code == STOPPED:
            raise RunError("stopped by its own deadline; the next launch resumes")
        if code == HELD:
            raise RunError("locked by another process; see the log")
        if code:
            error = record_failure(workdir_of(command), code)
            raise RunError(f"{' '.join(command)}: exit code {code}: {error}")

    def checkpoint(self, command: Sequence[str]) -> Any:
        """Stops the command and returns the task for submitit to requeue."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._terminate()
            deadline = time.monotonic() + max(self.grace - _REQUEUE_SECONDS, self.grace / 2)
            while not self._has_ended() and time.monotonic() < deadline:
                time.sleep(0.05)
            if not self._has_ended():
                print(f"not saved within {self.grace:g} s; it resumes from its last checkpoint")
                self._child.kill()
        return DelayedSubmission(Requeued(self.grace), command)

    def _terminate(self, *signal_and_frame: object) -> None:
        """Sends SIGTERM once, since SLURM may send several signals."""
        if not self._terminated and not self._has_ended():
            self._child.terminate()
        self._terminated = True

    def _has_ended(self, block: bool = False) -> bool:
        """Returns True if the child has ended.

        `Popen.wait` would hold a lock, which a signal handler that interrupts it cannot acquire.
        """
        options = os.WEXITED | os.WNOWAIT | (0 if block else os.WNOHANG)
        try:
            return os.waitid(os.P_PID, self._child.pid, options) is not None
        except ChildProcessError:  # it has already been waited for
            return True


def _receive_only_sigterm() -> None:
    """Ignores submitit's signals, in the child before the command starts."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def check(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Raises UsageError if submitit, SLURM or the folder is missing, or the time limit is bad."""
    check_folders(options.folder)
    _executor(options, len(jobs))


def _executor(options: LauncherOptions, count: int) -> Any:
    try:
        import submitit
    except ImportError:
        raise UsageError("--launcher=slurm needs submitit: pip install submitit") from None
    if options.cluster not in ("slurm", "local"):
        raise UsageError(f"--cluster={options.cluster}: must be slurm or local")
    if options.minutes * 60 <= options.grace:
        raise UsageError(
            f"--minutes={options.minutes}: must be longer than --grace={options.grace} seconds"
        )
    try:
        executor = submitit.AutoExecutor(
            options.folder, cluster=options.cluster, slurm_max_num_timeout=options.restarts
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"--launcher=slurm --cluster={options.cluster}: {one_line(error).rstrip('.')}. Start "
            "it on a host that can submit jobs, or try it here with --cluster=local"
        ) from None
    executor.update_parameters(
        name="sweep",
        nodes=1,
        tasks_per_node=1,
        cpus_per_task=options.cpus,
        gpus_per_node=options.gpus or None,
        timeout_min=options.minutes,
        slurm_partition=options.partition,
        slurm_account=options.account,
        slurm_signal_delay_s=options.grace,
        slurm_array_parallelism=options.processes or max(1, count),
        slurm_additional_parameters={"requeue": True},  # for preemption by SLURM itself
    )
    return executor


def submit(jobs: Sequence[Job], options: LauncherOptions) -> list[Any]:
    """Submits the jobs as one array and returns submitit's job for each."""
    executor = _executor(options, len(jobs))
    from submitit.core.utils import FailedJobError

    try:
        return executor.map_array(Requeued(options.grace), [list(job.command) for job in jobs])
    except FailedJobError as error:
        raise UsageError(
            f"--launcher=slurm: the cluster rejected the jobs: {one_line(error, 300)}"
        ) from None


def launch(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Submits the jobs as one array and prints their ids; it does not wait for them."""
    for job, submitted in zip(jobs, submit(jobs, options), strict=True):
        print(f"{job.name} is {submitted.job_id}, output in {submitted.paths.stdout}", flush=True)
