"""Parsing of command lines, and errors of commands as one line."""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

from repvgg_jax.errors import RunError, UsageError, one_line, reraise
from repvgg_jax.runtime.devices import explaining_absent_devices
from repvgg_jax.runtime.files import local_path
from repvgg_jax.runtime.messages import print_error
from repvgg_jax.runtime.output import run_with_output


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


def path_type(text: str) -> Path:
    """Returns a path, as the `type` of an argument."""
    try:
        return local_path(text)
    except UsageError as error:  # argparse would drop the message of a ValueError
        raise argparse.ArgumentTypeError(str(error)) from None


def integers(text: str) -> tuple[int, ...]:
    """Returns comma-separated integers, as the `type` of an argument."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be comma-separated integers, such as 0,1,2"
        ) from None


def positive_integers(text: str) -> tuple[int, ...]:
    """Returns comma-separated positive integers, as the `type` of an argument."""
    if min(numbers := integers(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be positive integers, such as 1,16")
    return numbers


def writing(path: Path) -> AbstractContextManager[None]:
    """Returns a context that raises RunError, naming the path, for errors of the file system."""
    return reraise(OSError, lambda error: RunError(f"{path} cannot be written ({one_line(error)})"))


def run_command(command: Callable[[], object]) -> int:
    """Runs a command and returns its exit code; an error is printed as one line."""

    def run() -> int:
        try:
            with explaining_absent_devices():
                command()
        except RunError as error:
            print_error(str(error))
            return error.exit_code
        return 0

    return run_with_output(run)
