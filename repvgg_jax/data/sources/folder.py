"""Class folders of image files: `<data_dir>/<split>/<class>/*.jpg`, or without splits."""

import os
from collections import Counter
from collections.abc import Sequence

from repvgg_jax.data.sources.base import EncodedSource, Record
from repvgg_jax.data.sources.listing import is_dangling, is_linked_folder, kind, list_images, scan
from repvgg_jax.errors import UsageError, shortened
from repvgg_jax.runtime.files import local_path
from repvgg_jax.runtime.processes import warn_once

_TRAIN_FOLDERS = ("train", "training")
# "test" comes after the others, since with a "val" folder it often contains unlabeled images, as in
# ImageNet.
_TEST_FOLDERS = ("val", "valid", "validation", "dev", "test", "testing")
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

    If `data_dir` has a folder `train` (or `training`), that is the training split, and the first
    of `val`, `valid`, `validation`, `dev`, `test` and `testing` that exists is the test split, in
    upper or lower case. Otherwise, the class folders must be in `data_dir` itself; both splits then
    have the same images. Images in subfolders of a class folder belong to the class.

    Warnings say which folder is evaluated if there is a choice, and which files were left out.

    Arguments are those of `load_source`.

    Raises:
      UsageError: if a folder is missing, empty or a dangling link, or the splits have different
        classes.
    """
    if data_dir is None:
        raise UsageError(f"data.source=folder requires data.data_dir; expected {_LAYOUT}")
    root = os.fspath(local_path(data_dir, "data.data_dir"))
    if not os.path.isdir(root):
        raise UsageError(f"data.data_dir={root} does not exist; expected {_LAYOUT}")
    train_root, test_roots = _split_roots(root)
    if split == "train":
        split_root = train_root
    elif test_roots:
        split_root = test_roots[0]
        _say_which_is_evaluated(train_root, test_roots)
    else:
        raise UsageError(f"{root} has a train folder but none of {', '.join(_TEST_FOLDERS)}")
    if test_roots and test_roots[0] != train_root:
        _check_same_classes(train_root, test_roots[0])
    classes, left_out = _classes(split_root)
    paths: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        files = _images(os.path.join(split_root, class_name), left_out)
        paths += files
        labels += [label] * len(files)
    _say_what_is_unusual(split_root, paths, left_out)

    def read(indices: Sequence[int]) -> list[Record]:
        return [_record(paths[i], labels[i]) for i in indices]

    return EncodedSource(
        name=f"{name} {split} in {split_root}",
        class_names=classes,
        size=len(paths),
        read=read,
        label_range=min(num_classes or len(classes), len(classes)),
        skip_corrupt=skip_corrupt,
    )


def _split_roots(root: str) -> tuple[str, list[str]]:
    """Returns the training folder and the folders that could be evaluated, the first choice first.

    Without a training folder, both are `root`.
    """
    folders = sorted(entry.name for entry in scan(root) if _is_folder(entry))
    found = {name.lower(): os.path.join(root, name) for name in folders}
    train = [found[name] for name in _TRAIN_FOLDERS if name in found]
    tests = [found[name] for name in _TEST_FOLDERS if name in found]
    if train:
        return train[0], tests
    if tests:
        raise UsageError(f"{root} has {tests[0]} but no train folder; expected {_LAYOUT}")
    for folder in found.values():
        if os.path.isdir(os.path.join(folder, "train")):
            raise UsageError(
                f"{root} has no train folder but {folder} has; set data.data_dir to it"
            )
    return root, [root]


def _classes(root: str) -> tuple[tuple[str, ...], Counter[str]]:
    """Returns the names of the class folders, and a count of the files beside them by kind."""
    names: list[str] = []
    files: Counter[str] = Counter()
    for entry in scan(root):
        if _is_folder(entry):
            names.append(entry.name)
        elif is_dangling(entry):  # leaving out a class would change the labels of others
            raise UsageError(
                f"{entry.path} is a link to {os.readlink(entry.path)}, which does not exist; "
                "restore the folder or delete the link"
            )
        else:
            files[f"{kind(entry)} beside the class folders"] += 1
    if not names:
        raise UsageError(f"{root} has no class folders; expected {_LAYOUT}")
    return tuple(sorted(names)), files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) or is_linked_folder(entry)


def _check_same_classes(train_root: str, test_root: str) -> None:
    train, test = (set(_classes(root)[0]) for root in (train_root, test_root))
    extra, missing = sorted(test - train), sorted(train - test)
    if extra or missing:
        raise UsageError(
            f"{test_root} and {train_root} must have the same class folders; {test_root} has extra "
            f"[{shortened(extra)}] and lacks [{shortened(missing)}]"
        )


def _images(folder: str, left_out: Counter[str]) -> list[str]:
    others: Counter[str] = Counter()
    files = list_images(folder, others)
    if not files:
        counts = f", but {_counts(others)}" if others else ""
        raise UsageError(f"the class folder {folder} has no images such as .jpg or .png{counts}")
    left_out.update(others)
    return files


def _record(path: str, label: int) -> Record:
    """Reads a file. A dangling link becomes an empty record, which is a corrupt image."""
    try:
        with open(path, "rb") as file:
            return Record(file.read(), label, path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and os.path.islink(path):
            target = os.readlink(path)
            return Record(b"", label, f"{path} (a link to {target}, which does not exist)")
        raise UsageError(f"cannot read the image {path}: {error.strerror}") from error


def _say_which_is_evaluated(train_root: str, test_roots: Sequence[str]) -> None:
    evaluated, *others = test_roots
    if evaluated == train_root:
        warn_once("%s has no train folder; training and evaluation use the same images", train_root)
    elif others:
        warn_once("evaluation uses %s; %s is not used", evaluated, shortened(others))


def _say_what_is_unusual(root: str, paths: Sequence[str], left_out: Counter[str]) -> None:
    depth = os.path.join(root, "class", "file").count(os.sep)
    nested = sum(path.count(os.sep) > depth for path in paths)
    if nested:
        warn_once(
            "%s: %d of %d images are in subfolders of class folders", root, nested, len(paths)
        )
    if left_out:
        warn_once("%s: left out %s", root, _counts(left_out))


def _counts(files: Counter[str]) -> str:
    """Returns counts by kind as text, the largest first."""
    order = sorted(files, key=lambda name: (-files[name], name))
    return shortened([f"{files[name]} {name}" for name in order])
