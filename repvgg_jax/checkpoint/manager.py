"""Asynchronous checkpoints of a training run, restored from the newest readable one.

The folder of a step holds three items: `variables` (params and batch_stats, which suffice for
inference), `optimizer` (its state and the step) and `position` (seed and step of the data stream).
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from repvgg_jax.checkpoint.integrity import (
    CHECKSUMS,
    check_checksums,
    check_shapes,
    read_named,
    root_cause,
    write_checksums,
)
from repvgg_jax.errors import DamagedError, RunError, one_line
from repvgg_jax.nets import Variables
from repvgg_jax.runtime.processes import all_processes, primary, sync_processes


def checkpoint_folder(workdir: str | Path) -> Path:
    """Returns the absolute path of the folder that holds a run's checkpoints."""
    return Path(workdir).absolute() / "checkpoints"


def steps(workdir: Path) -> list[int]:
    """Returns the steps of a workdir's complete checkpoints, in ascending order."""
    folder = checkpoint_folder(workdir)
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []


@contextmanager
def open_manager(workdir: Path, max_to_keep: int) -> Iterator[ocp.CheckpointManager]:
    """Yields a manager that saves asynchronously under `<workdir>/checkpoints`.

    The manager keeps the `max_to_keep` latest checkpoints and the one with the best top-1.

    Raises:
      RunError: if the last save fails and the body of the `with` statement raised nothing.
    """
    policies = ocp.checkpoint_managers
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics["top1"], n=1, keep_checkpoints_without_metrics=False
    )
    manager = _manager(
        workdir,
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(max_to_keep), best]),
        cleanup_tmp_directories=True,  # left by a process that died while saving
        async_options=ocp.AsyncOptions(
            post_finalization_callback=partial(_add_checksums, checkpoint_folder(workdir))
        ),
    )
    try:
        yield manager
    except BaseException:
        with suppress(Exception):
            manager.close()
        raise
    with _named_write_errors(manager):
        manager.close()


def open_reader(workdir: Path) -> ocp.CheckpointManager:
    """Returns a read-only manager of a workdir's checkpoints."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # Orbax warns that read_only is set
    try:
        return _manager(workdir, read_only=True)
    finally:
        logging.set_verbosity(level)


def _manager(workdir: Path, **options: Any) -> ocp.CheckpointManager:
    folder = checkpoint_folder(workdir)
    handlers = {
        "variables": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "position": ocp.JsonCheckpointHandler(),
    }
    options = ocp.CheckpointManagerOptions(**options)
    # The constructor reads the metadata of all checkpoints, so that any damaged one may raise.
    return read_named(
        folder, lambda: ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
    )


def _add_checksums(folder: Path) -> None:
    """Adds checksums to a checkpoint that was just written, before it gets its final name.

    TensorStore itself detects flipped bits only in small arrays.
    """
    if primary():
        for step_folder in folder.iterdir():
            if step_folder.is_dir() and not (step_folder / CHECKSUMS).exists():
                write_checksums(step_folder)


def save(
    manager: ocp.CheckpointManager,
    variables: Variables,
    optimizer_state: Mapping[str, Any],
    position: Mapping[str, int],
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Starts writing a checkpoint, and returns once the arrays are copied.

    Args:
      manager: manager of the run.
      variables: `{"params", "batch_stats"}`.
      optimizer_state: `{"step", "opt_state"}`.
      position: `{"seed", "step"}` of the data stream; the step is also that of the checkpoint.
      metrics: metrics including `top1`, if this state was evaluated.

    Raises:
      RunError: if this checkpoint or the previous one cannot be written.
    """
    with _named_write_errors(manager):
        manager.save(
            position["step"],
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(_as_dicts(variables)),
                optimizer=ocp.args.StandardSave(optimizer_state),
                position=ocp.args.JsonSave(dict(position)),
            ),
            metrics=dict(metrics) if metrics else None,
        )


def check_saved(manager: ocp.CheckpointManager, wait: bool = False) -> None:
    """Raises RunError if a save has failed; with `wait`, waits for saves to finish first."""
    with _named_write_errors(manager):
        if wait:
            manager.wait_until_finished()
        else:
            manager.check_for_errors()


@contextmanager
def _named_write_errors(manager: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise many exception types
        found = steps(Path(manager.directory).parent)
        good = f"{manager.directory}/{found[-1]}" if found else "none was written yet"
        raise RunError(
            f"a checkpoint could not be written to {manager.directory} "
            f"({one_line(root_cause(error))}); last good checkpoint: {good}"
        ) from error


def restore_latest(
    manager: ocp.CheckpointManager, variables: Variables, optimizer_state: Mapping[str, Any]
) -> Any:
    """Restores the newest readable checkpoint; returns None if there are no checkpoints.

    The result has the attributes `variables`, `optimizer` and `position`. Its arrays get the shapes
    and shardings of the given trees of arrays or `jax.ShapeDtypeStruct`s, on any number of devices.
    Damaged checkpoints after the restored one are moved to `<workdir>/damaged`, with a warning.

    Raises:
      UsageError: if there are checkpoints but none can be read, or they do not match the net.
    """
    found = sorted(manager.all_steps(), reverse=True)
    if not found:
        return None
    try:
        step, restored = newest_readable(
            manager,
            found,
            variables=ocp.args.StandardRestore(_as_dicts(variables)),
            optimizer=ocp.args.StandardRestore(optimizer_state),
            position=ocp.args.JsonRestore(),
        )
    except DamagedError as error:
        raise DamagedError(
            f"{error}; no readable checkpoint is left: restore one from a backup or use a new "
            "--workdir"
        ) from None
    damaged = [str(other) for other in found if other > step]
    if damaged and primary():
        folder = Path(manager.directory)
        aside = folder.parent / "damaged"
        aside.mkdir(exist_ok=True)
        for name in damaged:
            shutil.rmtree(aside / name, ignore_errors=True)
            (folder / name).rename(aside / name)
    if damaged:
        sync_processes("damaged checkpoints moved")
        manager.reload()
    return restored


def newest_readable(
    manager: ocp.CheckpointManager, found: list[int], **items: Any
) -> tuple[int, Any]:
    """Returns the first step in `found` whose items all processes can read, and the items.

    The processes agree on each step before any of them continues. Otherwise, a process that fails
    alone would leave the others blocked inside Orbax until the runtime times out.

    Raises:
      DamagedError: if none of the checkpoints can be read.
      UsageError: if a checkpoint does not match the net, listing the differences.
    """

    def check(where: Path) -> None:
        if primary():
            check_checksums(where)

    def read(where: Path) -> Any:
        step = int(where.name)
        metadata = read_named(where, lambda: manager.item_metadata(step)["variables"])
        check_shapes(where, items["variables"].item, metadata)
        return read_named(where, lambda: manager.restore(step, args=ocp.args.Composite(**items)))

    for step, before in zip(found, [*found[1:], None], strict=True):
        where = Path(manager.directory) / str(step)
        try:
            _on_all_processes(check, where)
            return step, _on_all_processes(read, where)
        except DamagedError as error:
            if before is None:
                raise
            logging.warning("%s; using step %d instead", error, before)
    raise AssertionError("no step was given")


def _on_all_processes(action: Callable[[Path], Any], where: Path) -> Any:
    """Returns `action(where)`; raises DamagedError on all processes if any of them does."""
    result, error = None, None
    try:
        result = action(where)
    except DamagedError as damage:
        error = damage
    if not all_processes(error is None):
        raise error or DamagedError("another process found the checkpoint damaged")
    return result


def _as_dicts(variables: Variables) -> dict[str, Any]:
    """Returns the trees as plain dicts, without the `Averaged` marker, which Orbax cannot save."""
    return {name: dict(tree) for name, tree in variables.items() if tree}
