"""The layout of class folders: the folders of the splits, and the classes in them."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from repvgg_jax.data.decode.pillow import suffixes
from repvgg_jax.data.sources.listing import is_linked_folder, kind, missing_target, scan
from repvgg_jax.errors import UsageError, shortened
from repvgg_jax.runtime.files import local_path, near_folder

TRAIN_FOLDERS = ("train", "training")
# "test" comes after the others, since with a "val" folder it often contains unlabeled images, as in
# ImageNet.
TEST_FOLDERS = ("val", "valid", "validation", "dev", "test", "testing")
_ARCHIVE_DEPTH = 4  # folders around the class folders, as in some archives
_LAYOUT = "<data_dir>/<class>/*.jpg, or <data_dir>/train/<class>/*.jpg and <data_dir>/val/..."


class Roots(NamedTuple):
    """The folders that contain the class folders.

    Attributes:
      train: folder of the training images.
      tests: folders that could be evaluated, the first choice first; empty if there are none, and
        `[train]` if the class folders are in `data_dir` itself.
    """

    train: str
    tests: list[str]

    @property
    def only_one(self) -> bool:
        """True if no images are kept apart from the training images."""
        return self.tests in ([], [self.train])


def find_roots(data_dir: str | None) -> Roots:
    """Returns the folders of the splits of `data_dir`.

    Raises:
      UsageError: if `data_dir` does not exist or has another layout.
    """
    if data_dir is None:
        raise UsageError(f"set --config.data.data_dir=FOLDER, with {_LAYOUT}")
    root = os.fspath(local_path(data_dir, "data.data_dir"))
    if not os.path.isdir(root):
        hint = near_folder(Path(root)) or f"; expected {_LAYOUT}"
        raise UsageError(f"data.data_dir={root} does not exist{hint}")
    folders = sorted(entry.name for entry in scan(root) if _is_folder(entry))
    found = {name.lower(): os.path.join(root, name) for name in folders}
    train = [found[name] for name in TRAIN_FOLDERS if name in found]
    tests = [found[name] for name in TEST_FOLDERS if name in found]
    if train:
        return Roots(train[0], tests)
    if tests:
        raise UsageError(f"{root} has {tests[0]} but no train folder; expected {_LAYOUT}")
    for folder in found.values():
        if os.path.isdir(os.path.join(folder, "train")):
            raise UsageError(
                f"{root} has no train folder but {folder} has; set --config.data.data_dir={folder}"
            )
    if len(folders) == 1 and (inner := _folder_of_several(*found.values())):
        raise UsageError(
            f"{root} has one class folder, {folders[0]}, and a classifier needs two or more; if "
            f"the classes are the folders in {inner}, set --config.data.data_dir={inner}"
        )
    return Roots(root, [root])


def _folder_of_several(folder: str) -> str | None:
    """Returns the outermost folder, of `folder` and those in it, that has several folders."""
    for _ in range(_ARCHIVE_DEPTH):
        inner = [entry.path for entry in scan(folder) if _is_folder(entry)]
        if len(inner) != 1:
            return folder if inner else None
        folder = inner[0]
    return None


def class_folders(data_dir: str | None) -> tuple[str, ...] | None:
    """Returns the sorted names of the class folders to train on; None if they cannot be listed."""
    try:
        return list_classes(find_roots(data_dir).train)[0]
    except UsageError:
        return None


def split_root(roots: Roots, split: str, holdout: float | None) -> str:
    """Returns the folder that contains the class folders of a split.

    Args:
      roots: the folders of the splits.
      split: "train" or "test".
      holdout: share of the images that is held out if there is no evaluation folder.

    Raises:
      UsageError: if both `holdout` and an evaluation folder are given, or neither is, or the splits
        have different classes.
    """
    if holdout is not None and not roots.only_one:
        raise UsageError(
            f"data.holdout={holdout:g} is for data without an evaluation folder, but there is "
            f"{roots.tests[0]}; unset data.holdout, or move that folder away"
        )
    if not roots.only_one:
        _check_same_classes(roots.train, roots.tests[0])
    if split == "train" or holdout is not None:
        return roots.train
    if not roots.tests:
        raise UsageError(
            f"{os.path.dirname(roots.train)} has a train folder but none of "
            f"{', '.join(TEST_FOLDERS)}; add one, or set data.holdout to the share of the images "
            "to hold out, such as 0.2"
        )
    return roots.tests[0]


def list_classes(root: str) -> tuple[tuple[str, ...], Counter[str]]:
    """Returns the sorted names of the class folders, and the number of files beside them by kind.

    Raises:
      UsageError: if there is no class folder, or a link to one is dangling.
    """
    names: list[str] = []
    files: Counter[str] = Counter()
    for entry in scan(root):
        if _is_folder(entry):
            names.append(entry.name)
        elif dangling := missing_target(entry.path):
            # Leaving out a class would change the labels of others.
            raise UsageError(f"{entry.path} is {dangling}; restore the folder or delete the link")
        else:
            files[f"{kind(entry)} beside the class folders"] += 1
    if not names:
        hint = f"expected {_LAYOUT}"
        if any(name.split()[0] in suffixes() for name in files):
            above = os.path.normpath(os.path.join(root, os.pardir))
            hint = f"it has images, so if it is the folder of a class, set data.data_dir={above}"
        raise UsageError(f"{root} has no class folders; {hint}")
    return tuple(sorted(names)), files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) or is_linked_folder(entry)


def _check_same_classes(train_root: str, test_root: str) -> None:
    train, test = (set(list_classes(root)[0]) for root in (train_root, test_root))
    extra, missing = sorted(test - train), sorted(train - test)
    if extra or missing:
        raise UsageError(
            f"{test_root} and {train_root} must have the same class folders; {test_root} has extra "
            f"[{shortened(extra)}] and lacks [{shortened(missing)}]"
        )
