"""Messages as a user sees them."""

import io
import logging

import pytest
from absl import logging as absl_logging

from repvgg_jax.runtime.messages import print_error, show_messages
from repvgg_jax.runtime.processes import inform_once, warn_once


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def logs(monkeypatch):
    """Restores the handlers and levels that `show_messages` sets."""
    monkeypatch.setattr(logging.root, "handlers", logging.root.handlers.copy())
    package, verbosity = logging.getLogger("repvgg_jax"), absl_logging.get_verbosity()
    level = package.level
    yield
    package.setLevel(level)
    absl_logging.set_verbosity(verbosity)


@pytest.mark.usefixtures("logs")
@pytest.mark.parametrize(
    ("stream", "no_color", "warning", "error"),
    [
        (io.StringIO(), "", "warning:", "error:"),
        (Terminal(), "1", "warning:", "error:"),
        (Terminal(), "", "\033[33mwarning:\033[0m", "\033[31merror:\033[0m"),
    ],
    ids=["file", "NO_COLOR", "terminal"],
)
def test_only_terminals_have_colors(stream, no_color, warning, error, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    show_messages()
    inform_once("100% of 3")
    warn_once("%d files", 3)
    absl_logging.info("of a library")
    print_error("wrong")
    assert stream.getvalue() == f"100% of 3\n{warning} 3 files\n{error} wrong\n"
