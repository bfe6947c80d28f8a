"""Standard output whose reader leaves, as `head` does, or that cannot be written."""

import errno
import os
import sys
from collections.abc import Callable

from repvgg_jax.errors import RunError, one_line
from repvgg_jax.runtime.messages import print_error

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def print_row(text: str) -> bool:
    """Prints a line at once; returns False, and drops later output, once the reader has left.

    Characters that standard output cannot encode, such as the bytes of a file name that is not
    UTF-8, are escaped.

    Raises:
      RunError: if standard output cannot be written, for example to a full disk.
    """
    if sys.stdout is None:  # the shell closed it: >&-
        return False
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        _drop_output()
        if isinstance(error, BrokenPipeError):
            return False
        raise _unwritable(error) from error
    return True


def with_output(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code; 0 if it ended since its reader had left.

    If its output cannot be written, that is an error in one line.
    """
    try:
        try:
            return command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.EPIPE, *_FULL):
            raise
        _drop_output()
        if isinstance(error, BrokenPipeError):
            return 0
        print_error(str(_unwritable(error)))
        return RunError.exit_code


def _drop_output() -> None:
    """Drops unwritten and later output, which Python would otherwise report when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unwritable(error: OSError) -> RunError:
    return RunError(f"the output cannot be written ({one_line(error)})")
