"""The one exception that `main.py` turns into a single line and exit code 2."""


class UsageError(ValueError):
    """A mistake of the user's: the message says what was wrong, what would be right, and where."""
