"""Wrappers of stdout and stderr that handle a reader that exits early (`head`), and a full disk."""

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from repvgg_jax.errors import RunError, one_line
from repvgg_jax.runtime.messages import print_error


class Output:
    """A stream that drops what is written to it once its reader has left.

    Args:
      stream: standard output or standard error.
      reports: False to drop what cannot be written for another reason too.

    Attributes:
      is_open: False once the reader has left.
    """

    def __init__(self, stream: TextIO, reports: bool = True):
        self.is_open = True
        self._stream = stream
        self._reports = reports

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text and returns its length.

        Raises:
          RunError: if it cannot be written, for example to a full disk.
        """
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered; raises as `write` does."""
        self._do(self._stream.flush)

    def _do(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            # What is buffered, and later output, is dropped; Python would try again when it exits.
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)
            if isinstance(error, BrokenPipeError):
                self.is_open = False
            elif self._reports:
                message = f"standard output cannot be written ({one_line(error)})"
                raise RunError(message) from error


def output_is_open() -> bool:
    """Returns False once the reader of standard output has left, or if the shell closed it."""
    return sys.stdout is not None and getattr(sys.stdout, "is_open", True)


def run_with_output(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code; it continues if the reader of its output leaves.

    If standard output cannot be written, `print` raises RunError, and the code is not 0.
    """
    if sys.stderr is not None and not isinstance(sys.stderr, Output):
        sys.stderr = Output(sys.stderr, reports=False)
    if sys.stdout is None:  # the shell closed it: >&-
        return command()
    if not isinstance(sys.stdout, Output):
        # It stays, since Python flushes the output when it exits.
        sys.stdout = Output(sys.stdout)
    code = command()
    try:
        sys.stdout.flush()
    except RunError as error:
        print_error(str(error))
        return code or error.exit_code
    return code
