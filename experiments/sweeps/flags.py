"""Command lines whose mistakes are one line, like all others of the user's."""

from __future__ import annotations

import argparse
from typing import NoReturn

from repvgg_jax.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and exit.

    Args:
      description: kept as it is written, in lines of its own.
    """

    def __init__(self, description: str | None):
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=as_written, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the flags")
