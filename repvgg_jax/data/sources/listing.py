"""Listing of the image files in a folder and its subfolders, with counts of all other files."""

import os
from collections import Counter
from contextlib import AbstractContextManager

from repvgg_jax.data.decode.pillow import suffixes
from repvgg_jax.errors import UsageError, one_line, reraise, shortened


def list_images(folder: str, left_out: Counter[str]) -> list[str]:
    """Returns the sorted paths of the images in a folder and its subfolders.

    Links are followed. Names that begin with a period are passed over: macOS writes "._x.jpg"
    beside each image on some disks, and Jupyter copies files to ".ipynb_checkpoints".

    Args:
      folder: folder to list.
      left_out: counter that receives the number of other files of each kind, such as ".txt".

    Raises:
      UsageError: if a folder cannot be listed.
    """
    paths: list[str] = []
    known = suffixes()

    def walk(folder: str, above: frozenset[tuple[int, int]]) -> None:
        with _named(folder):
            status = os.stat(folder)
        this = (status.st_dev, status.st_ino)
        if this in above:
            left_out["link to a folder above it"] += 1
            return
        for entry in scan(folder):
            is_image = suffix(entry.name) in known
            # The kind of an entry is known from the listing; following a link costs a call each.
            if entry.is_dir(follow_symlinks=False) or (not is_image and is_linked_folder(entry)):
                walk(entry.path, above | {this})
            elif is_image:
                paths.append(entry.path)
            else:
                left_out[kind(entry)] += 1

    walk(folder, frozenset())
    return sorted(paths)


def scan(folder: str) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder whose names don't begin with a period.

    Raises:
      UsageError: if it cannot be listed.
    """
    with _named(folder), os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def suffix(name: str) -> str:
    """Returns the suffix of a file name in lower case, with its period; "" if it has none."""
    _, period, ending = name.rpartition(".")
    return period + ending.lower() if period else ""


def is_linked_folder(entry: os.DirEntry[str]) -> bool:
    """Returns True for a link to a folder."""
    return entry.is_symlink() and os.path.isdir(entry.path)


def missing_target(path: str | os.PathLike[str]) -> str | None:
    """Returns a description of a dangling link for messages; None for other paths."""
    if os.path.islink(path) and not os.path.exists(path):
        return f"a link to {os.readlink(path)}, which does not exist"
    return None


def kind(entry: os.DirEntry[str]) -> str:
    """Returns the kind under which a file that is left out is counted."""
    if missing_target(entry.path):
        return "dangling link"
    return suffix(entry.name) or "without a suffix"


def counted(left_out: Counter[str]) -> str:
    """Returns counts by kind as text, the largest first, such as "3 .txt, 1 dangling link"."""
    order = sorted(left_out, key=lambda name: (-left_out[name], name))
    return shortened([f"{left_out[name]} {name}" for name in order])


def _named(folder: str) -> AbstractContextManager[None]:
    return reraise(
        OSError, lambda error: UsageError(f"cannot list the folder {folder}: {one_line(error)}")
    )
