"""Class folders of image files: `<data_dir>/<split>/<class>/*.jpg`, or without splits."""

import os
from collections.abc import Sequence

from absl import logging

from repvgg_jax.data.sources.base import EncodedSource, Record, check_label
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.files import local_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# "test" is last, since with a "val" folder it often contains unlabeled images, as in ImageNet.
_TEST_FOLDERS = ("val", "validation", "test")
_LAYOUT = "<data_dir>/train/<class>/*.jpg and <data_dir>/val/<class>/*.jpg"


def load_folder(
    name: str,
    data_dir: str | None,
    split: str,
    *,
    num_classes: int | None = None,
    skip_corrupt: bool = False,
) -> EncodedSource:
    """Returns the source of a split; the label of a class is its index in the sorted folder names.

    If `data_dir` has a folder `train`, that is the training split, and the first of `val`,
    `validation` and `test` that exists is the test split. Otherwise, the class folders must be in
    `data_dir` itself; both splits then have the same images, and a warning is logged.

    Arguments are those of `load_source`.

    Raises:
      UsageError: if a folder is missing or empty, the splits have different classes, or there are
        more than `num_classes` classes.
    """
    if data_dir is None:
        raise UsageError(f"data.source=folder requires data.data_dir; expected {_LAYOUT}")
    root = os.fspath(local_path(data_dir, "data.data_dir"))
    if not os.path.isdir(root):
        raise UsageError(f"data.data_dir={root} does not exist; expected {_LAYOUT}")
    train_root, test_root = _split_roots(root)
    if train_root == test_root:
        logging.warning("%s has no train folder; training and evaluation use the same images", root)
    split_root = train_root if split == "train" else test_root
    if split_root is None:
        raise UsageError(f"{root} has a train folder but none of {', '.join(_TEST_FOLDERS)}")
    classes = _classes(train_root)
    if test_root is not None:
        _check_same_classes(train_root, test_root)
    paths: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        files = _images(os.path.join(split_root, class_name))
        if num_classes is not None:
            check_label(label, num_classes, files[0])
        paths += files
        labels += [label] * len(files)

    def read(indices: Sequence[int]) -> list[Record]:
        return [Record(_bytes(paths[i]), labels[i], paths[i]) for i in indices]

    return EncodedSource(
        name=f"{name} {split} in {split_root}",
        class_names=classes,
        size=len(paths),
        read=read,
        label_range=len(classes),
        skip_corrupt=skip_corrupt,
    )


def _split_roots(root: str) -> tuple[str, str | None]:
    train = os.path.join(root, "train")
    tests = [os.path.join(root, folder) for folder in _TEST_FOLDERS]
    tests = [folder for folder in tests if os.path.isdir(folder)]
    if os.path.isdir(train):
        return train, tests[0] if tests else None
    if tests:
        raise UsageError(f"{root} has {tests[0]} but no train folder; expected {_LAYOUT}")
    return root, root


def _classes(root: str) -> tuple[str, ...]:
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UsageError(f"{root} has no class folders; expected {_LAYOUT}")
    return tuple(names)


def _check_same_classes(train_root: str, test_root: str) -> None:
    train, test = set(_classes(train_root)), set(_classes(test_root))
    extra, missing = sorted(test - train), sorted(train - test)
    if extra or missing:
        raise UsageError(
            f"{test_root} and {train_root} must have the same class folders; {test_root} has extra "
            f"[{_short(extra)}] and lacks [{_short(missing)}]"
        )


def _short(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _images(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        files = sorted(
            entry.path
            for entry in entries
            # macOS creates a file "._name.jpg" for each image on some file systems.
            if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
        )
    if not files:
        raise UsageError(f"the class folder {folder} has no images ({', '.join(SUFFIXES)})")
    return files


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; it existed when the folder was listed"
        ) from error
