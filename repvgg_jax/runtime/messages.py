"""Messages of the command line: information, warnings and errors on stderr, colored on terminals.

The package logs information to the logger `repvgg_jax`, which is silent by default, and warnings
with absl. `show_messages` makes a process print both as a user should see them.
"""

import logging
import os
import sys
from typing import TextIO

from absl import logging as absl_logging

_LOGGER = logging.getLogger("repvgg_jax")
_COLORS = {"red": 31, "green": 32, "yellow": 33}


def inform(message: str) -> None:
    """Logs information, which needs no action; `processes.inform_once` does so in process 0."""
    _LOGGER.info("%s", message)


def colored(text: str, color: str, stream: TextIO) -> str:
    """Returns the text in a color if the stream is a terminal, unless NO_COLOR is set."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{_COLORS[color]}m{text}\033[0m"


def show_messages() -> None:
    """Prints information of this package and all warnings on stderr from now on.

    Information is printed as it is, and a warning as `warning: ...`.
    """
    logging.basicConfig(format="%(message)s", handlers=[_Lines()], force=True)
    absl_logging.set_verbosity(absl_logging.WARNING)
    _LOGGER.setLevel(logging.INFO)


def print_error(message: str) -> None:
    """Prints `error: ...` on stderr."""
    print(f"{colored('error:', 'red', sys.stderr)} {message}", file=sys.stderr, flush=True)


class _Lines(logging.Handler):
    """Prints log records on stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if record.levelno >= logging.WARNING:
                line = f"{colored('warning:', 'yellow', sys.stderr)} {line}"
            if "tqdm" in sys.modules:
                sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
            else:
                sys.stderr.write(f"{line}\n")
        except Exception:  # a message that cannot be shown must not end a run
            self.handleError(record)
