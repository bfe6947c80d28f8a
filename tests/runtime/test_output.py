"""Commands whose standard output or error ends before they do."""

import os
import sys
from pathlib import Path

import pytest

from repvgg_jax.errors import RunError
from repvgg_jax.runtime.messages import print_error
from repvgg_jax.runtime.output import run_with_output


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk():
    return os.open("/dev/full", os.O_WRONLY)


def printing(code):
    """Returns a command that prints, and handles errors as main.py does."""

    def command():
        try:
            print("text")
            print("text", file=sys.stderr)
            print("more")
        except RunError as error:
            print_error(str(error))
            return error.exit_code
        return code

    return command


@pytest.fixture(params=[False, True], ids=["buffered", "line by line"])
def run(request, monkeypatch):
    """Returns a function that runs a command whose outputs are those descriptors."""

    def run(command, stdout=os.devnull, stderr=os.devnull):
        with (
            open(stdout, "w") as out,
            open(stderr, "w") as err,
            monkeypatch.context() as patch,
        ):
            out.reconfigure(line_buffering=request.param)
            err.reconfigure(line_buffering=True)  # as Python does
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            try:
                return run_with_output(command)
            finally:
                sys.stdout.flush()  # as Python does when it exits

    return run


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_goes_on_without_readers(code, run):
    assert run(printing(code), stdout=closed_pipe(), stderr=closed_pipe()) == code


@pytest.mark.parametrize("code", [0, 2])
def test_an_output_that_cannot_be_written_is_an_error(code, run, tmp_path):
    errors = tmp_path / "errors"
    assert run(printing(code), full_disk(), errors) != 0
    expected = "error: standard output cannot be written (No space left on device)"
    assert expected in errors.read_text().splitlines()


@pytest.mark.parametrize("output", [closed_pipe, full_disk])
@pytest.mark.parametrize("error", [KeyError("a fault"), KeyboardInterrupt(), SystemExit(2)])
def test_what_a_command_raises_is_not_lost(error, output, run):
    def command():
        print("text")
        raise error

    outputs = {"stdout": closed_pipe(), "stderr": output()}
    with pytest.raises(type(error)):
        run(command, **outputs)


def test_errors_of_other_files_are_not_of_the_output(run):
    def other_pipe():
        os.write(closed_pipe(), b"text")

    with pytest.raises(OSError, match="No space left"):
        run(lambda: Path("/dev/full").write_text("text"))
    with pytest.raises(BrokenPipeError):
        run(other_pipe)


def test_no_descriptor_is_lost(run):
    for _ in range(2):
        before = len(os.listdir("/proc/self/fd"))
        run(printing(0), stdout=closed_pipe())
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert run_with_output(lambda: 2) == 2
