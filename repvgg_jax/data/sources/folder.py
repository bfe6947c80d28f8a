"""Class folders of image files: `<data_dir>/<split>/<class>/*.jpg`, or without splits."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from repvgg_jax.data.decode.pillow import image_size, suffixes
from repvgg_jax.data.sources.base import EncodedSource, Record
from repvgg_jax.data.sources.holdout import held_out
from repvgg_jax.data.sources.listing import (
    counted,
    is_dangling,
    is_linked_folder,
    kind,
    list_images,
    scan,
)
from repvgg_jax.errors import UsageError, shortened
from repvgg_jax.runtime.files import local_path, near_folder
from repvgg_jax.runtime.processes import inform_once, warn_once

_TRAIN_FOLDERS = ("train", "training")
# "test" comes after the others, since with a "val" folder it often contains unlabeled images, as in
# ImageNet.
_TEST_FOLDERS = ("val", "valid", "validation", "dev", "test", "testing")
_LAYOUT = "<data_dir>/<class>/*.jpg, or <data_dir>/train/<class>/*.jpg and <data_dir>/val/..."
_SAMPLE = 200  # images whose size is read
_FEWEST = 5  # images to evaluate of a class, without a warning


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
        """True if no images are kept apart from those to train on."""
        return self.tests in ([], [self.train])


class FolderSplit(NamedTuple):
    """The image files of a split.

    Attributes:
      root: folder that contains the class folders.
      class_names: the sorted names of the class folders.
      paths: path of each image.
      labels: label of each image.
    """

    root: str
    class_names: tuple[str, ...]
    paths: list[str]
    labels: list[int]

    def class_sizes(self) -> tuple[int, ...]:
        """Returns the number of images of each class."""
        counts = Counter(self.labels)
        return tuple(counts[label] for label in range(len(self.class_names)))


class FolderSummary(NamedTuple):
    """The properties of class folders that a recipe depends on.

    Attributes:
      root: folder that contains the class folders to train on.
      class_names: the sorted names of the class folders.
      train_sizes: number of images of each class to train on.
      test_sizes: number of images of each class to evaluate.
      side: median over a sample of training images of the shorter side, in pixels.
      only_one: True if there is no separate folder to evaluate.
    """

    root: str
    class_names: tuple[str, ...]
    train_sizes: tuple[int, ...]
    test_sizes: tuple[int, ...]
    side: int
    only_one: bool


def load_folder(
    data_dir: str | None,
    split: str,
    *,
    holdout: float | None = None,
    num_classes: int | None = None,
    skip_corrupt: bool = False,
) -> EncodedSource:
    """Returns the source of a split; a label is the index in the sorted names of class folders.

    If `data_dir` has a folder `train` (or `training`), that is the training split, and the first
    of `val`, `valid`, `validation`, `dev`, `test` and `testing` that exists is the test split, in
    upper or lower case. Otherwise, the class folders must be in `data_dir` itself. Images in
    subfolders of a class folder belong to the class.

    Without a folder to evaluate, the test split is the share `holdout` of the images, and the
    training split the others. If `holdout` is None too, class folders in `data_dir` itself serve
    both splits.

    Warnings say which folder is evaluated if there is a choice, which classes have few images held
    out, and which files were left out.

    Arguments are those of `open_source`.

    Raises:
      UsageError: if a folder is missing, empty or a dangling link, or the splits have different
        classes.
    """
    roots = _find_roots(data_dir)
    left_out: Counter[str] = Counter()
    files = _list_split(roots, split, holdout, left_out)
    if split == "train" and roots.tests == [roots.train] and holdout is None:
        warn_once(
            "%s has no train folder; training and evaluation use the same images; set data.holdout "
            "to the share of them to keep for evaluation, such as 0.2",
            files.root,
        )
    if split == "test" and len(roots.tests) > 1 and holdout is None:
        evaluated, *others = roots.tests
        inform_once(f"evaluation uses {evaluated}; {shortened(others)} is not used")
    if split == "test" and holdout is not None:
        _warn_of_few(files)
    if split == "train" or not roots.only_one:
        _say_what_is_unusual(files, left_out)

    def read(indices: Sequence[int]) -> list[Record]:
        return [_record(files.paths[i], files.labels[i]) for i in indices]

    classes = len(files.class_names)
    return EncodedSource(
        name=files.root,
        class_names=files.class_names,
        size=len(files.paths),
        read=read,
        label_range=min(num_classes or classes, classes),
        skip_corrupt=skip_corrupt,
    )


def class_folders(data_dir: str | None) -> tuple[str, ...] | None:
    """Returns the sorted names of the class folders to train on; None if they cannot be listed."""
    try:
        return _classes(_find_roots(data_dir).train)[0]
    except UsageError:
        return None


def summarize_folder(data_dir: str | None, holdout: float) -> FolderSummary:
    """Returns the classes, numbers and sizes of the images that `load_folder` would load.

    Args:
      data_dir: the folder.
      holdout: share of the images to evaluate if there is no folder to evaluate.

    Raises:
      UsageError: as `load_folder`, and if no image of a sample can be opened.
    """
    roots = _find_roots(data_dir)
    share = holdout if roots.only_one else None
    train, test = (_list_split(roots, split, share, Counter()) for split in ("train", "test"))
    sample = train.paths[:: -(-len(train.paths) // _SAMPLE)]
    sides = sorted(min(size) for path in sample if (size := image_size(path)))
    if not sides:
        raise UsageError(f"{train.root}: none of {len(sample)} images can be opened")
    return FolderSummary(
        root=train.root,
        class_names=train.class_names,
        train_sizes=train.class_sizes(),
        test_sizes=test.class_sizes(),
        side=sides[len(sides) // 2],
        only_one=roots.only_one,
    )


def _find_roots(data_dir: str | None) -> Roots:
    """Returns the folders of the splits of `data_dir`."""
    if data_dir is None:
        raise UsageError(f"set --config.data.data_dir=FOLDER, with {_LAYOUT}")
    root = os.fspath(local_path(data_dir, "data.data_dir"))
    if not os.path.isdir(root):
        hint = near_folder(Path(root)) or f"; expected {_LAYOUT}"
        raise UsageError(f"data.data_dir={root} does not exist{hint}")
    folders = sorted(entry.name for entry in scan(root) if _is_folder(entry))
    found = {name.lower(): os.path.join(root, name) for name in folders}
    train = [found[name] for name in _TRAIN_FOLDERS if name in found]
    tests = [found[name] for name in _TEST_FOLDERS if name in found]
    if train:
        return Roots(train[0], tests)
    if tests:
        raise UsageError(f"{root} has {tests[0]} but no train folder; expected {_LAYOUT}")
    for folder in found.values():
        if os.path.isdir(os.path.join(folder, "train")):
            raise UsageError(
                f"{root} has no train folder but {folder} has; set data.data_dir to it"
            )
    return Roots(root, [root])


def _list_split(
    roots: Roots, split: str, holdout: float | None, left_out: Counter[str]
) -> FolderSplit:
    """Returns the images of a split, and counts other files in `left_out`."""
    root = _split_root(roots, split, holdout)
    if not roots.only_one:
        _check_same_classes(roots.train, roots.tests[0])
    class_names, beside = _classes(root)
    left_out.update(beside)
    paths: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        files = _images(os.path.join(root, class_name), left_out)
        if holdout is not None:
            apart = held_out(files, root, holdout)
            files = [path for path in files if (path in apart) == (split == "test")]
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise UsageError(
            f"every class folder in {root} has a single image, so none can be held out for "
            "evaluation; add images"
        )
    return FolderSplit(root, class_names, paths, labels)


def _split_root(roots: Roots, split: str, holdout: float | None) -> str:
    """Returns the folder that contains the class folders of a split."""
    if holdout is not None and not roots.only_one:
        raise UsageError(
            f"data.holdout={holdout:g} is for images without a folder to evaluate, but there is "
            f"{roots.tests[0]}; unset it, or move that folder away"
        )
    if split == "train" or holdout is not None:
        return roots.train
    if not roots.tests:
        raise UsageError(
            f"{os.path.dirname(roots.train)} has a train folder but none of "
            f"{', '.join(_TEST_FOLDERS)}; add one, or set data.holdout to the share of the images "
            "to evaluate, such as 0.2"
        )
    return roots.tests[0]


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
        hint = f"expected {_LAYOUT}"
        if any(name.split()[0] in suffixes() for name in files):
            above = os.path.normpath(os.path.join(root, os.pardir))
            hint = f"it has images, so if it is the folder of a class, set data.data_dir={above}"
        raise UsageError(f"{root} has no class folders; {hint}")
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
        counts = f", but {counted(others)}" if others else ""
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


def _warn_of_few(files: FolderSplit) -> None:
    sizes = zip(files.class_names, files.class_sizes(), strict=True)
    if few := [f"{name} {size}" for name, size in sizes if size < _FEWEST]:
        warn_once(
            "%s: classes with fewer than %d images to evaluate: %s; add images or a "
            "val folder, since accuracy on so few is uncertain",
            files.root,
            _FEWEST,
            shortened(few),
        )


def _say_what_is_unusual(files: FolderSplit, left_out: Counter[str]) -> None:
    depth = os.path.join(files.root, "class", "file").count(os.sep)
    nested = sum(path.count(os.sep) > depth for path in files.paths)
    if nested:
        total = len(files.paths)
        inform_once(f"{files.root}: {nested} of {total} images are in subfolders of class folders")
    if left_out:
        warn_once("%s: left out %s", files.root, counted(left_out))
