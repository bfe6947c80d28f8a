"""Creates, checks and reads the workdir of a run."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from repvgg_jax.config.classes import write_class_names
from repvgg_jax.config.describe import data_name
from repvgg_jax.config.fields import ADDED, FIELDS, flat, run_fields
from repvgg_jax.errors import UsageError, one_line, reraise, shortened
from repvgg_jax.runtime.files import local_path, near_folder, read_json, write_json
from repvgg_jax.runtime.lock import LOCK_FILE, locked
from repvgg_jax.runtime.processes import primary, sync_processes

_MAX_LISTED = 6  # differing fields


def check_workdir(config: Mapping[str, Any], workdir: Path) -> None:
    """Checks that a workdir has no unrelated files and no checkpoints of another config.

    Raises:
      UsageError: if it has, listing the config fields that differ.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; give a folder")
    saved = workdir / "config.json"
    if not saved.exists():
        if workdir.exists() and any(path.name != LOCK_FILE for path in workdir.iterdir()):
            raise UsageError(
                f"--workdir={workdir} is not empty and is not a repvgg_jax run (no config.json); "
                "choose another --workdir"
            )
        return
    if not has_checkpoints(workdir):
        return
    run = read_config(workdir)
    there = run_fields(run)
    here = run_fields(config)
    differing = [name for name in here | there if here.get(name) != there.get(name)]
    if differing:
        # Those that say what was trained come first.
        differing.sort(key=lambda name: name not in ("model.name", "data.source", "data.name"))
        changes = [f"{n}: {there.get(n)} in the run, {here.get(n)} now" for n in differing]
        advice = "choose another --workdir, or remove that folder"
        kind = "with a different config"
        if len(differing) > _MAX_LISTED:
            kind = f"of another config, {run.model.name} on {data_name(run.data)}"
        elif {*differing} & {"train.epochs", "train.steps"}:
            advice += (
                f"; to train its weights further, use --config.init_from={workdir} with another "
                "--workdir"
            )
        raise UsageError(
            f"--workdir={workdir} contains a run {kind} ({shortened(changes, _MAX_LISTED)}); "
            f"{advice}"
        )


def has_checkpoints(workdir: Path) -> bool:
    """Returns True if a workdir has a checkpoint to resume from."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


@contextmanager
def lock_run(workdir: Path) -> Iterator[None]:
    """Creates the folder of a run, and locks it for the duration of the context, in process 0.

    Raises:
      HeldError: if another process holds the lock.
      UsageError: if the folder cannot be created or written to.
    """
    if primary():
        with named_write_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir, take=primary()):
        yield


def make_workdir(
    config: Mapping[str, Any], workdir: Path, class_names: Sequence[str] | None = None
) -> None:
    """Creates the folder of a run and writes its config as JSON, in process 0.

    The config of a run with checkpoints is left as it is: it describes what computed them.

    Raises:
      UsageError: if the folder cannot be created or written to.
    """
    if primary():
        with named_write_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            if not has_checkpoints(workdir):
                write_json(workdir / "config.json", config)
            if class_names is not None:
                write_class_names(workdir, class_names)
    sync_processes("workdir made")


def check_writable(workdir: Path) -> None:
    """Checks that a workdir can be created or written to, and leaves nothing behind.

    Raises:
      UsageError: if it cannot; raised by process 0 only.
    """
    if primary():
        with named_write_errors(workdir):
            existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
            tempfile.TemporaryFile(dir=existing).close()


def named_write_errors(workdir: Path) -> AbstractContextManager[None]:
    """Returns a context that turns an OSError into a UsageError that names the workdir."""
    return reraise(
        OSError,
        lambda error: UsageError(
            f"--workdir={workdir} cannot be written to ({one_line(error)}); choose another "
            "--workdir"
        ),
    )


def changed_fields(config: Mapping[str, Any], workdir: Path) -> dict[str, tuple[Any, Any]]:
    """Returns name -> (value in the run, value now) of the fields that differ from config.json.

    Fields that the run's version did not have are left out.
    """
    there = dict(flat(read_config(workdir).to_dict()))
    return {
        name: (there[name], value)
        for name, value in flat(config)
        if name in there and there[name] != value
    }


def read_config(workdir: str | Path) -> ConfigDict:
    """Returns the config of the run in a workdir.

    Raises:
      UsageError: if the workdir contains no run, or its config.json cannot be read.
    """
    workdir = local_path(workdir)
    path = workdir / "config.json"
    try:
        tree = read_json(path, "restore it, or copy it from a run of the same config")
    except UsageError as error:
        if isinstance(error.__cause__, NotADirectoryError):
            raise UsageError(f"{workdir} is a file, not the workdir of a run") from None
        if isinstance(error.__cause__, FileNotFoundError):
            near = near_folder(workdir, "config.json") or "; give the folder of a run"
            raise UsageError(f"no run in {workdir}: {path} does not exist{near}") from None
        raise
    missing = {"model", "data", "mesh", "train", "optim", "fuse"} - set(tree)
    if missing:
        raise UsageError(f"{path} is not a repvgg_jax config: {', '.join(sorted(missing))} missing")
    for name in ADDED:
        *section, field = name.split(".")
        (tree[section[0]] if section else tree).setdefault(field)
    required = {name for name, field in FIELDS.items() if field.bounds}
    if missing := required - dict(flat(tree)).keys():
        raise UsageError(
            f"{path} was written by another version: {', '.join(sorted(missing))} missing; "
            "add the defaults from configs/default.py"
        )
    return ConfigDict(tree)
