"""The output of the Makefile's commands."""

import os
import select
import subprocess

from tests.support.commands import ROOT


def test_each_line_of_pip_is_shown_as_it_comes():
    command = ["make", "--silent", "--eval", "try: ; @$(LAST_LINE)", "try"]
    options = dict(cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    with subprocess.Popen(command, **options) as process:
        for line in ("  Downloading %s", "x" * 100):
            process.stdin.write(f"{line}\n".encode())
            assert select.select([process.stdout], [], [], 60)[0], "the line waits for others"
            assert os.read(process.stdout.fileno(), 1000).decode() == f"\r\x1b[K{line[:78]}"
        process.stdin.close()
        assert process.stdout.read() == b"\r\x1b[K"
    assert process.returncode == 0
