"""User-facing errors, their exit codes, and a helper that turns any exception into one line.

Exit codes of `main.py` and of the commands in `experiments`:

|   0 | `main.py` finished, or stopped on request; the same command resumes a stopped run        |
|   1 | unexpected error with a traceback, which is a bug                                        |
|   2 | `UsageError`: the command, the config or a file must be corrected before a retry         |
|   3 | `RunError`: the run failed, for example because of a full disk or a non-finite loss      |
|  73 | `HeldError`: another process has locked the workdir                                      |
|  75 | `experiments.sweeps.run_one`: stopped on request; the same command resumes the run       |
| 130 | interrupted by a second Ctrl-C, before the current step was saved                        |
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_LISTED = 24  # names in a message


class RunError(Exception):
    """An error that ends a run. Its one-line message says what happened and what is intact."""

    exit_code = 3


class UsageError(RunError, ValueError):
    """An error in the user's input. The message says what is wrong, where, and what is allowed."""

    exit_code = 2


class SmallImageError(UsageError):
    """An error for images that are so small that a layer of the net leaves none of their pixels."""


class DamagedError(UsageError):
    """An error for a file that this package wrote and that can no longer be read."""


class HeldError(RunError):
    """An error for a workdir that another process has locked. The message names the process."""

    exit_code = 73  # EX_CANTCREAT of sysexits.h


class Stopped(BaseException):
    """A request to stop a run, which can be resumed later. The message says what requested it.

    Like KeyboardInterrupt, it does not derive from Exception, so `except Exception` ignores it.
    """


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns the message of any exception as one line of at most `limit` characters.

    For an OSError, this is the message of the operating system without the file name. Trailing
    references to documentation are removed. If the message is empty, returns the exception's type.
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
    """Converts exceptions of the given kinds, except MemoryError, into `as_error(exception)`."""
    try:
        yield
    except MemoryError:
        raise
    except kinds as error:
        raise as_error(error) from error


def shortened(names: Sequence[str], most: int = 10) -> str:
    """Returns names separated by commas, and the number of those beyond `most`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def described(value: Any) -> str:
    """Returns a short description of a wrong argument, for an error message.

    None, strings, numbers and shapes are shown as they are, others by type, arrays also by shape.

    Example:
      >>> described(3), described([3]), described(None)
      ('3', 'a list', 'None')
    """
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    if isinstance(value, tuple) and all(isinstance(each, int) for each in value):
        return repr(value)
    name, shape = type(value).__name__, getattr(value, "shape", None)
    if re.search("[Aa]rray|Tracer", name):
        name = "array"  # ArrayImpl, ndarray, PRNGKeyArray, DynamicJaxprTracer
    of_shape = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}{of_shape}"


def compact(name: str) -> str:
    """Returns a name in lower case, without spaces, hyphens, points and underscores."""
    return re.sub(r"[\W_]", "", name.lower())


def nearest(name: str, known: Iterable[str], spelling: Callable[[str], str] = compact) -> list[str]:
    """Returns up to three names that `name` may stand for, the best first.

    These are the names of the same spelling if there are any, or else those that it is the start
    of, the shortest first, or else similar ones.

    Example:
      >>> nearest("resnext-50", ["resnet50", "resnext50_32x4d"])
      ['resnext50_32x4d']
    """
    named: dict[str, list[str]] = {}
    for each in known:
        named.setdefault(spelling(each), []).append(each)
    wanted = spelling(name)
    longer = sorted((each for each in named if wanted and each.startswith(wanted)), key=len)
    found = [wanted] if wanted in named else longer or difflib.get_close_matches(wanted, named)
    return [each for spelled in found for each in named[spelled]][:3]


def check_known(
    kind: str, name: str, known: Collection[str], spelling: Callable[[str], str] = compact
) -> None:
    """Raises UsageError with the `nearest` names if `name` is not in `known`."""
    if isinstance(name, str) and name in known:
        return
    close = nearest(str(name), known, spelling)
    listed = ", ".join(list(known)[:_LISTED])
    if len(known) > _LISTED:
        listed += f", ... ({len(known)} in all)"
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {listed}"
    raise UsageError(f"unknown {kind} {described(name)}: {hint}")
