"""The class names of a run's outputs, kept in its workdir and compared with those of the data."""

from collections.abc import Sequence
from pathlib import Path

from repvgg_jax.errors import UsageError, shortened
from repvgg_jax.runtime.files import local_path, near_folder, read_json, write_json

CLASSES_FILE = "classes.json"


def class_names(workdir: str | Path) -> tuple[str, ...] | None:
    """Returns the name of each class that a run's net was trained on, in the order of its outputs.

    None stands for unknown names: those of imported weights without data, or of a run by a version
    that did not keep them. If there are fewer names than outputs, the last outputs have no class.

    Raises:
      UsageError: if there is no such folder, or the file with the names cannot be read.

    Example:
      >>> class_names("runs/quickstart")[3]  # doctest: +SKIP
      '3'
    """
    path = local_path(workdir) / CLASSES_FILE
    if not path.parent.is_dir():
        near = near_folder(path.parent, "config.json")
        raise UsageError(f"no run in {workdir}: the folder does not exist{near}")
    if not path.exists():
        return None
    remedy = "delete it, and the next training run will write it again"
    return tuple(read_json(path, remedy, list))


def write_class_names(workdir: Path, names: Sequence[str]) -> None:
    """Writes the class names of a run."""
    write_json(workdir / CLASSES_FILE, list(names))


def check_classes(workdir: Path, names: Sequence[str], where: str, to_train: bool = False) -> None:
    """Checks that data have the classes of a run, in the same order, unless those are unknown.

    Args:
      workdir: folder of the run.
      names: class names of the data.
      where: name of the data, for the message.
      to_train: True if the data are to train on; the message then says how to start another run.

    Raises:
      UsageError: if the classes differ, with both lists.
    """
    known = class_names(workdir)
    if known is not None and known != tuple(names):
        remedy = "use data with the classes of the run"
        if to_train:
            remedy += (
                f", or choose another --workdir for a new run; --config.init_from={workdir} starts "
                "it from this one's weights"
            )
        raise UsageError(
            f"{where} has {describe_classes(names)}, but the run in {workdir} was trained on "
            f"{describe_classes(known)}: {_difference(names, known)}; {remedy}"
        )


def describe_classes(names: Sequence[str]) -> str:
    """Returns the number of classes and their names, shortened."""
    return f"{len(names)} classes [{shortened(names)}]"


def _difference(here: Sequence[str], there: Sequence[str]) -> str:
    """Returns the first output whose class differs, and both names."""
    pairs = [(tuple(here[k : k + 1]), tuple(there[k : k + 1])) for k in range(len(here) + 1)]
    index = next(k for k, (ours, theirs) in enumerate(pairs) if ours != theirs)
    ours, theirs = (repr(name[0]) if name else "nothing" for name in pairs[index])
    return f"output {index} is {ours} in the data and {theirs} in the run"
