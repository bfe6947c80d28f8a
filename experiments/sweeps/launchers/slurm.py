"""The launcher `slurm`: one array job through submitit, requeued whenever it is preempted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from experiments.sweeps.jobs import HELD, STOPPED, STOPPED_CODES, Job
from experiments.sweeps.launchers import LauncherOptions, check_folders
from experiments.sweeps.workdirs import forget_last_words, keep_last_words, of_command
from repvgg_jax.errors import RunError, UsageError, one_line

FLAGS = {"processes", "folder", "grace", "restarts", "cluster", "partition", "account", "minutes"}
FLAGS |= {"cpus", "gpus"}
_CLUSTERS = ("slurm", "local")
_TO_KILL = 10.0  # seconds of the grace that are left for requeueing
_SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


class Requeued:
    """Runs a command, and has submitit requeue it when it must give way.

    Before a time limit and at a preemption submitit gets SIGUSR2 and calls `checkpoint`: the
    command gets a SIGTERM and the grace to save in, then the job is queued again and starts the
    same command, which goes on. SIGTERM alone is passed on too but requeues nothing, as it is also
    what scancel sends: this waits for the SIGUSR2 or the kill that follows, so that a job which
    SLURM itself means to requeue doesn't end before.

    Args:
      grace: seconds between such a signal and the kill.
    """

    def __init__(self, grace: float):
        self.grace = grace
        self._child: subprocess.Popen | None = None
        self._told = False

    def __call__(self, command: Sequence[str]) -> None:
        """Runs it to its end.

        Raises:
          RunError: where that is another than success.
        """
        program = sys.executable if command[0] == "python" else command[0]
        with suppress(OSError):  # the command itself will say so
            forget_last_words(of_command(command))
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # none comes while there is half a child
        try:
            signal.signal(signal.SIGTERM, self._tell)
            # A group of its own: a SIGUSR2 to all processes of a step would end the command.
            self._child = subprocess.Popen(
                [program, *command[1:]], process_group=0, preexec_fn=_only_sigterm
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._ended(block=True)
        code = self._child.wait()
        if self._told and code in STOPPED_CODES:
            time.sleep(self.grace)
            raise RunError("stopped by SIGTERM; the next launch goes on from what was saved")
        if code == STOPPED:
            raise RunError("stopped by its own deadline; the next launch goes on from there")
        if code == HELD:
            raise RunError("another process has this run; its log says which")
        if code:
            words = keep_last_words(of_command(command), code)
            raise RunError(f"{' '.join(command)}: exit code {code}: {words}")

    def checkpoint(self, command: Sequence[str]) -> Any:
        """What submitit is to queue again; the command has saved by then, or is killed."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._tell()
            until = time.monotonic() + max(self.grace - _TO_KILL, self.grace / 2)
            while not self._ended() and time.monotonic() < until:
                time.sleep(0.05)
            if not self._ended():
                print(f"not saved within {self.grace:g} s; it goes on from its last checkpoint")
                self._child.kill()
        return DelayedSubmission(Requeued(self.grace), command)

    def _tell(self, *signal_and_frame: object) -> None:
        """The command is to save and stop; once, as SLURM may send several signals."""
        if not self._told and not self._ended():
            self._child.terminate()
        self._told = True

    def _ended(self, block: bool = False) -> bool:
        """Popen's own wait holds a lock, which a signal's handler in the midst of it cannot get."""
        options = os.WEXITED | os.WNOWAIT | (0 if block else os.WNOHANG)
        try:
            return os.waitid(os.P_PID, self._child.pid, options) is not None
        except ChildProcessError:  # waited for already
            return True


def _only_sigterm() -> None:
    """In the child, before the command: what wakes submitit is no business of its."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def check(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Raises UsageError without submitit, SLURM or the folder, or for a time limit that is none."""
    check_folders(options.folder)
    _executor(options, len(jobs))


def _executor(options: LauncherOptions, count: int) -> Any:
    try:
        import submitit
    except ImportError:
        raise UsageError("--launcher=slurm needs submitit: pip install submitit") from None
    if options.cluster not in _CLUSTERS:
        raise UsageError(f"--cluster={options.cluster}: {' or '.join(_CLUSTERS)}")
    if options.minutes * 60 <= options.grace:
        raise UsageError(
            f"--minutes={options.minutes}: must be longer than --grace={options.grace} seconds"
        )
    try:
        executor = submitit.AutoExecutor(
            options.folder, cluster=options.cluster, slurm_max_num_timeout=options.restarts
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise UsageError(
            f"--launcher=slurm --cluster={options.cluster}: {reason}. Start it where jobs are "
            "submitted, or try it here with --cluster=local"
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
        slurm_additional_parameters={"requeue": True},  # where preemption is SLURM's own
    )
    return executor


def submit(jobs: Sequence[Job], options: LauncherOptions) -> list[Any]:
    """Submits the jobs as one array.

    Returns:
      submitit's job for each.

    Raises:
      UsageError: as `check`, or where SLURM doesn't take the jobs.
    """
    executor = _executor(options, len(jobs))
    from submitit.core.utils import FailedJobError

    try:
        return executor.map_array(Requeued(options.grace), [list(job.command) for job in jobs])
    except FailedJobError as error:
        raise UsageError(
            f"--launcher=slurm: the cluster refuses the jobs: {one_line(error, 300)}"
        ) from None


def launch(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Submits the jobs as one array, and says which is which; it doesn't wait for them.

    Raises:
      UsageError: as `submit`.
    """
    for job, submitted in zip(jobs, submit(jobs, options), strict=True):
        print(f"{job.name} is {submitted.job_id}, output in {submitted.paths.stdout}", flush=True)
