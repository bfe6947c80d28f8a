"""User-facing errors, their exit codes, and a helper that turns any exception into one line.

Exit codes of `main.py` and of the commands in `experiments`:

|   0 | finished, or stopped on request by `main.py`; the same command resumes a stopped run     |
|   1 | an unexpected error, with a traceback: a bug                                             |
|   2 | `UsageError`: the command, the config or a file must change first; retrying does not help |
|   3 | `RunError`: the run failed, for example on a full disk or a loss that is not finite      |
|  73 | `HeldError`: another process holds the lock of the workdir                               |
|  75 | `experiments.sweeps.run_one`: stopped on request; the same command resumes the run       |
| 130 | interrupted by a second Ctrl-C, before the current step was saved                        |
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager


class RunError(Exception):
    """A run cannot continue. The message is one line: what happened, and what is intact."""

    exit_code = 3


class UsageError(RunError, ValueError):
    """The user's input is wrong. The message says what is wrong, what would be right, and where."""

    exit_code = 2


class DamagedError(UsageError):
    """A file that this package wrote can no longer be read."""


class HeldError(RunError):
    """Another process holds the lock of a workdir. The message names it."""

    exit_code = 73  # EX_CANTCREAT of sysexits.h


class Stopped(BaseException):
    """A run was asked to stop and can be resumed later. The message names who asked.

    Like KeyboardInterrupt it is not an Exception, so that no handler of errors catches it.
    """


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns the message of any exception as one line of at most `limit` characters.

    For an error of the operating system this is the system's own text, without the file's name. A
    trailing reference to documentation is dropped. An empty message gives the exception's type.
    """
    message = getattr(error, "strerror", None) or str(error)
    text = re.split(r"\.?\s+See (?:full|http)", " ".join(message.split()))[0]
    text = text or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


@contextmanager
def reraise(
    kinds: type[Exception] | tuple[type[Exception], ...],
    as_error: Callable[[Exception], Exception],
) -> Iterator[None]:
    """Raises `as_error(error)` for an error of these kinds in the block, except MemoryError."""
    try:
        yield
    except MemoryError:
        raise
    except kinds as error:
        raise as_error(error) from error


def check_known(kind: str, name: str, known: Collection[str]) -> None:
    """Raises UsageError, suggesting the nearest names, unless `name` is one of those known."""
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(known)}"
    raise UsageError(f"unknown {kind} {name!r}: {hint}")
