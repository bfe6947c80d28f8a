"""The version of this package, and the git commit of its code."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_ROOT = Path(__file__).parents[1]
# Results are committed too, and a new row is not a change of the code.
_CODE = (".", ":!experiments/results", ":!docs/results")


@cache
def git_commit() -> dict[str, Any]:
    """Returns the commit of the code, and whether tracked files have changes, as `dirty`.

    Both are None if the package is not installed from a clone, or git is missing. Later calls
    return the same, since the code of a process is that of its start.

    Example:
      >>> git_commit()  # doctest: +SKIP
      {'commit': '1c78fb5e...', 'dirty': False}
    """

    def git(*arguments: str) -> str:
        # safe.directory: the repository may belong to another user, as in a container.
        command = ["git", "-c", f"safe.directory={_ROOT}", "-C", str(_ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # A package in site-packages may lie inside the repository of another project.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _ROOT.resolve():
            return {"commit": None, "dirty": None}
        changes = git("status", "--porcelain", "--untracked-files=no", "--", *_CODE)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
