"""Command-line parsing with one-line errors."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from repvgg_jax.errors import RunError, UsageError


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError where argparse would print its usage and exit.

    Args:
      description: help text, printed without reformatting.
    """

    def __init__(self, description: str | None):
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=as_written, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message}; --help lists the flags")


def run_command(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit code; an error is printed as one line."""
    try:
        command()
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
