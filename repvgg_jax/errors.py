"""The exceptions that `main.py` turns into a single line and an exit code."""


class RunError(Exception):
    """A run cannot go on. The message is one line: what happened, and where the good part lies."""

    exit_code = 3


class UsageError(RunError, ValueError):
    """A mistake of the user's: the message says what was wrong, what would be right, and where."""

    exit_code = 2


class Stopped(RunError):  # noqa: N818 (nothing is wrong)
    """A run was told to stop, and can go on later. The message says by what."""

    exit_code = 0


class DamagedError(UsageError):
    """Files that were ours and cannot be read any more."""
