"""Tables on standard output."""

import os
import sys

import pytest

from repvgg_jax.cli.table import Table
from repvgg_jax.errors import RunError
from repvgg_jax.runtime.output import Output


def test_the_header_comes_with_the_first_row(capsys):
    table = Table({"name": "<5", "size": ">6"})
    assert not capsys.readouterr().out
    table.add("a", "1")
    table.add("b", "22")
    assert capsys.readouterr().out == "name     size\na           1\nb          22\n"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_cannot_be_encoded_is_escaped(encoding, tmp_path, monkeypatch):
    with (tmp_path / "out").open("w", encoding=encoding) as file:
        monkeypatch.setattr(sys, "stdout", file)
        Table({"name": ""}).add("\u00e9 \udce9")
    name = {"ascii": r"\xe9 \udce9", "utf-8": "\u00e9 \\udce9"}[encoding]
    assert (tmp_path / "out").read_text("utf-8") == f"name\n{name}\n"


def test_rows_for_a_reader_that_has_left_are_dropped(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        for stdout in (Output(pipe), None):  # Python's for a closed descriptor
            monkeypatch.setattr(sys, "stdout", stdout)
            table = Table({"name": ""})
            table.add("a")
            table.add("b")
            assert not table.is_open


def test_a_full_disk_is_one_line(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", Output(full))
        with pytest.raises(RunError, match=r"^standard output cannot be written \(No space left"):
            Table({"name": ""}).add("a")
