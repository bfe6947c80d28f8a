"""Writing and restoring checkpoints of a training run."""

from __future__ import annotations

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


@contextmanager
def open_manager(workdir: Path, keep: int) -> Iterator[ocp.CheckpointManager]:
    """Asynchronous saves under `<workdir>/checkpoints`: the `keep` latest and the best top-1.

    Raises:
      RunError: where the last save cannot be written. It doesn't take the place of an error that is
        on its way already, as a full disk fails more than one thing.
    """
    policies = ocp.checkpoint_managers
    preserve = [
        policies.LatestN(keep),
        policies.BestN(
            get_metric_fn=lambda metrics: metrics["top1"],
            n=1,
            keep_checkpoints_without_metrics=False,
        ),
    ]
    manager = _manager(
        workdir,
        preservation_policy=policies.AnyPreservationPolicy(preserve),
        cleanup_tmp_directories=True,  # which a process left that died while it saved
        async_options=ocp.AsyncOptions(
            post_finalization_callback=partial(_add_checksums, _checkpoints(workdir))
        ),
    )
    try:
        yield manager
    except BaseException:
        with suppress(Exception):
            manager.close()
        raise
    with _writing(manager):
        manager.close()


def _reader(workdir: Path) -> ocp.CheckpointManager:
    """To read alone; Orbax would warn that what was asked for is so."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return _manager(workdir, read_only=True)
    finally:
        logging.set_verbosity(level)


def _checkpoints(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / "checkpoints"


def _add_checksums(directory: Path) -> None:
    """To the checkpoint just written, before it gets its name.

    TensorStore itself notices a flipped bit in small arrays only.
    """
    if primary():
        for folder in directory.iterdir():
            if folder.is_dir() and not (folder / CHECKSUMS).exists():
                write_checksums(folder)


def _manager(workdir: Path, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        _checkpoints(workdir),
        options=ocp.CheckpointManagerOptions(**options),
        item_handlers={
            "variables": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "position": ocp.JsonCheckpointHandler(),
        },
    )


def save(
    manager: ocp.CheckpointManager,
    variables: Variables,
    optimizer: Mapping[str, Any],
    position: Mapping[str, int],
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Start writing a checkpoint; the arrays are copied before this returns.

    Args:
      manager: of the workdir.
      variables: `{"params", "batch_stats"}`.
      optimizer: `{"step", "opt_state"}`.
      position: `{"seed", "step"}`, the data stream's; its step names the checkpoint.
      metrics: with a `top1`, where the net was just evaluated.

    Raises:
      RunError: where it cannot be written, or the one before could not.
    """
    with _writing(manager):
        manager.save(
            position["step"],
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(_as_dicts(variables)),
                optimizer=ocp.args.StandardSave(optimizer),
                position=ocp.args.JsonSave(dict(position)),
            ),
            metrics=dict(metrics) if metrics else None,
        )


def check_saved(manager: ocp.CheckpointManager, wait: bool = False) -> None:
    """Raises RunError where a save that was started has failed; waits for it to end if asked."""
    with _writing(manager):
        manager.wait_until_finished() if wait else manager.check_for_errors()


@contextmanager
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Names what could not be written, and what is still good."""
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise a dozen types
        found = steps(Path(manager.directory).parent)
        good = f"{manager.directory}/{found[-1]}" if found else "none was written yet"
        raise RunError(
            f"a checkpoint could not be written to {manager.directory} "
            f"({one_line(root_cause(error))}); last good checkpoint: {good}"
        ) from error


def restore(
    manager: ocp.CheckpointManager,
    variables: Variables,
    optimizer: Mapping[str, Any],
    step: int,
) -> tuple[Variables, Mapping[str, Any], dict[str, int]]:
    """The checkpoint of a step, laid out as the given trees.

    Args:
      manager: of the workdir.
      variables, optimizer: trees of arrays or of `jax.ShapeDtypeStruct` with shardings; a
        checkpoint of any number of devices is laid out anew.
      step: one of `manager.all_steps()`.

    Raises:
      UsageError: where it is damaged, or another net's, listing names or shapes that differ.
    """
    restored = _restore(
        manager,
        step,
        variables=ocp.args.StandardRestore(_as_dicts(variables)),
        optimizer=ocp.args.StandardRestore(optimizer),
        position=ocp.args.JsonRestore(),
    )
    return restored.variables, restored.optimizer, restored.position


def restore_latest(
    manager: ocp.CheckpointManager, variables: Variables, optimizer: Mapping[str, Any]
) -> tuple[Variables, Mapping[str, Any], dict[str, int]] | None:
    """The newest checkpoint that can be read, as `restore` gives it; None where there is none.

    Damaged ones that are newer are moved to `<workdir>/damaged`, with a warning that names them.

    Raises:
      UsageError: where there are checkpoints, and none can be read or they are another net's.
    """
    found = sorted(manager.all_steps(), reverse=True)
    if not found:
        return None
    directory = Path(manager.directory)
    try:
        step, restored = _newest(
            directory, found, lambda step: restore(manager, variables, optimizer, step)
        )
    except DamagedError as error:
        raise DamagedError(
            f"{error}, nor any other; put a copy back, or name a new --workdir to start anew"
        ) from None
    damaged = [other for other in found if other > step]
    if damaged and primary():
        aside = directory.parent / "damaged"
        aside.mkdir(exist_ok=True)
        for other in damaged:
            shutil.rmtree(aside / str(other), ignore_errors=True)
            (directory / str(other)).rename(aside / str(other))
    if damaged:
        sync_processes("damaged checkpoints moved")
        manager.reload()
    return restored


def _newest(directory: Path, found: list[int], read: Callable[[int], Any]) -> tuple[int, Any]:
    """The first of the steps that all processes can read, and what was read.

    What the primary's checksums don't find and one process alone cannot read ends with the others'
    waiting for it inside Orbax, until the runtime gives up on them.
    """

    def attempt(action: Callable[[], Any]) -> tuple[Any, DamagedError | None]:
        """The result, or else the error; the error on every process where one has it."""
        result, error = None, None
        try:
            result = action()
        except DamagedError as damage:
            error = damage
        if not all_processes(error is None):
            error = error or DamagedError("another process found the checkpoint damaged")
        return result, error

    def check(step: int) -> None:
        if primary():
            check_checksums(directory / str(step))

    for step, before in zip(found, [*found[1:], None], strict=True):
        _, error = attempt(partial(check, step))
        if error is None:
            restored, error = attempt(partial(read, step))
        if error is None:
            return step, restored
        if before is None:
            raise error
        logging.warning("%s; going on from step %d", error, before)
    raise AssertionError("no step was given")


def steps(workdir: Path) -> list[int]:
    """The steps that a workdir has complete checkpoints of, ascending."""
    directory = _checkpoints(workdir)
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.exists() else []


def _restore(manager: ocp.CheckpointManager, step: int, **items: Any) -> Any:
    """Some items of a step, after a look whether its variables are the net's."""
    where = Path(manager.directory) / str(step)
    metadata = read_named(where, lambda: manager.item_metadata(step)["variables"])
    check_shapes(where, items["variables"].item, metadata)
    return read_named(where, lambda: manager.restore(step, args=ocp.args.Composite(**items)))


def _as_dicts(variables: Variables) -> dict[str, Any]:
    """The same trees without the mark of an average, of which Orbax knows nothing."""
    return {name: dict(tree) for name, tree in variables.items() if tree}
