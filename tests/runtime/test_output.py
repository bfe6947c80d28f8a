"""Commands whose standard output ends before they do."""

import os
import sys
from pathlib import Path

import pytest

from repvgg_jax.runtime.output import with_output


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk():
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("line_buffering", [False, True])
@pytest.mark.parametrize(
    ("output", "code", "error"),
    [
        (closed_pipe, 0, ""),
        (full_disk, 3, "error: the output cannot be written (No space left on device)\n"),
    ],
)
def test_an_output_that_ends_is_no_traceback(
    output, code, error, line_buffering, monkeypatch, capsys
):
    def command():
        print("text")
        print("more")
        return 2

    with os.fdopen(output(), "w") as stdout, monkeypatch.context() as patch:
        stdout.reconfigure(line_buffering=line_buffering)
        patch.setattr(sys, "stdout", stdout)
        assert with_output(command) == code
        print("dropped", flush=True)
    assert capsys.readouterr().err == error


def test_errors_of_other_files_are_not_of_the_output(monkeypatch):
    def command():
        Path("/missing/file").read_text()

    with pytest.raises(FileNotFoundError):
        with_output(command)
    monkeypatch.setattr(sys, "stdout", None)
    assert with_output(lambda: 2) == 2
