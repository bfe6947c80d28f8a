"""Runs the commands and snippets of pages in a copy of the repository."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from docs.check.pages import ROOT, Block, blocks, commands

TIMEOUT = 900  # seconds per command


def run(page: Path, folder: Path) -> int:
    """Runs the blocks of a page in `folder`, and returns how many failed."""
    failures, names = 0, ""
    for block in blocks(page):
        if block.annotation == "not run":
            print(f"{block.where}: not run: {block.argument}", flush=True)
            continue
        if block.language:
            first = block.argument if block.annotation == "first" else ""
            names += f"\n{first}\n{block.text}\n"
            (folder / "snippet.py").write_text(names)
            script = ["python snippet.py"]
        else:
            more = block.argument if block.annotation == "run with" else ""
            script = [f"{command} {more}".strip() for command in commands(block)]
        for command in script:
            failures += not succeeds(command, block, folder)
    return failures


def succeeds(command: str, block: Block, folder: Path) -> bool:
    """Runs a command in the scratch folder, prints the outcome, and returns True on success."""
    began = time.monotonic()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, output = f"none after {TIMEOUT} s", str(error.stdout or "")
    seconds = time.monotonic() - began
    state = "ok" if code == 0 else f"FAILED, exit code {code}"
    print(f"{block.where}: {command}: {state} ({seconds:.0f} s)", flush=True)
    if code != 0:
        print("\n".join(f"    {line}" for line in output.splitlines()[-15:]), flush=True)
    return code == 0


def copy_repository(folder: Path) -> None:
    """Copies the repository to `folder`, which shares the environment of this one."""
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignored)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
