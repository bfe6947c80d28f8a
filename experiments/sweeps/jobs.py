"""Jobs, which are commands of single runs of a sweep, and their exit codes."""

import signal
from dataclasses import dataclass

from repvgg_jax.errors import HeldError

# The command was stopped on request and resumes when started again: EX_TEMPFAIL of sysexits.h.
STOPPED = 75
# The run is locked by another process.
HELD = HeldError.exit_code
# Exit codes after a request to stop, including those of a process that was killed before it could
# handle the signal, and a shell's code for SIGINT.
STOPPED_CODES = (STOPPED, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT)
# The longest name of a job: Kubernetes appends 15 characters for a pod, and allows 63.
LONGEST_NAME = 48


@dataclass(frozen=True)
class Job:
    """One run of a sweep as a command.

    Attributes:
      name: unique name of at most `LONGEST_NAME` lowercase letters, digits and hyphens.
      command: the argv that starts or resumes the run; `python` is replaced by the launcher's own
        interpreter. Its exit code is 0 if the run is finished, `STOPPED` after a SIGTERM, and
        `HELD` if another process has locked the run.
      programs: name of what the run compiles; jobs of the same name share their compiled programs.
    """

    name: str
    command: tuple[str, ...]
    programs: str | None = None
