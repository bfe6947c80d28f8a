"""The workdir of a run: created, checked and read back."""

from __future__ import annotations

import json
from pathlib import Path

from ml_collections import ConfigDict

from repvgg_jax.config.fields import BOUNDS, flat, identity, plain
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.files import write_json
from repvgg_jax.runtime.processes import primary, sync_processes


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Raises UsageError unless the workdir is new, empty, or this very config's own.

    A run that has not come to its first checkpoint has nothing to lose, and may be another's.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; name a folder")
    saved = workdir / "config.json"
    if not saved.exists():
        if workdir.exists() and any(workdir.iterdir()):
            raise UsageError(
                f"--workdir={workdir} is not empty and holds no config.json, so it is no run of "
                "ours; name a new folder"
            )
        return
    if not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        return
    theirs, ours = identity(read_config(workdir)), identity(config)
    differing = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
    if differing:
        changes = ", ".join(f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in differing)
        raise UsageError(
            f"--workdir={workdir} holds a run of another config ({changes}); "
            "name a new folder, or remove that one"
        )


def make_workdir(config: ConfigDict, workdir: Path) -> None:
    """Make a run's folder, and write the config there; one process does, and the others wait.

    Raises:
      UsageError: where the folder cannot be made or written to.
    """
    if primary():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / "config.json", plain(config))
        except OSError as error:
            raise UsageError(
                f"--workdir={workdir} cannot be written to ({error.strerror}); name another folder"
            ) from None
    sync_processes("workdir made")


def read_config(workdir: Path) -> ConfigDict:
    """The config that a workdir's run was started with.

    Raises:
      UsageError: where the workdir holds no run, or its config.json cannot be read.
    """
    path = Path(workdir) / "config.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except NotADirectoryError:
        raise UsageError(f"{workdir} is a file, no run's workdir") from None
    except FileNotFoundError:
        raise UsageError(f"no run in {workdir}: {path} does not exist") from None
    except ValueError as error:
        raise UsageError(f"{path} is not a config: {error}") from None
    missing = {"model", "data", "mesh", "train", "optim", "fuse"} - set(tree)
    if missing:
        raise UsageError(f"{path} is not a config of ours: it lacks {', '.join(sorted(missing))}")
    if missing := BOUNDS.keys() - dict(flat(tree)):
        raise UsageError(
            f"{path} was written by another version: it lacks {', '.join(sorted(missing))}; "
            "add what configs/default.py has for it"
        )
    return ConfigDict(tree)
