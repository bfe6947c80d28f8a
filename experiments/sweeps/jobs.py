"""A job: the command of one run of a sweep, and the exit codes by which it reports."""

import signal
from dataclasses import dataclass

# A command that was told to stop and resumes when it is started again: EX_TEMPFAIL of sysexits.h.
STOPPED = 75
# A command whose run is locked by another process: EX_CANTCREAT of sysexits.h.
HELD = 73
# Exit codes of a command that was told to stop, also before it could handle the signal: killed by
# the signal itself, or the code that a shell makes of a SIGINT.
STOPPED_CODES = (STOPPED, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT)
# The longest name of a job: Kubernetes appends 15 characters for a pod, and allows 63.
LONGEST_NAME = 48


@dataclass(frozen=True)
class Job:
    """One run of a sweep as a command.

    Attributes:
      name: unique name of small letters, digits and hyphens; every scheduler takes one of up to
        `LONGEST_NAME` characters.
      command: the argv that starts or resumes the run; `python` stands for the launcher's own
        interpreter. Its exit code is 0 when the run is finished, `STOPPED` after a SIGTERM, and
        `HELD` where another process has locked the run.
    """

    name: str
    command: tuple[str, ...]
