"""Command lines whose mistakes are one line, like all others of the user's."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from repvgg_jax.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and exit.

    Args:
      description: as it is written, in lines of its own.
      options: of `argparse.ArgumentParser`.
    """

    def __init__(self, description: str | None, **options: Any):
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(
            description=description, formatter_class=as_written, allow_abbrev=False, **options
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the flags")
