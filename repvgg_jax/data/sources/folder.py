"""Class folders of image files: `<data_dir>/<split>/<class>/*.jpg`, or without splits."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from repvgg_jax.data.sources.base import EncodedSource, Record
from repvgg_jax.data.sources.folder_layout import Roots, find_roots, list_classes, split_root
from repvgg_jax.data.sources.holdout import held_out
from repvgg_jax.data.sources.listing import counted, list_images, missing_target
from repvgg_jax.errors import UsageError, shortened
from repvgg_jax.runtime.processes import inform_once, warn_once

_FEWEST = 5  # evaluation images of a class, without a warning


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

    Without an evaluation folder, the test split is the share `holdout` of the images, and the
    training split is the rest. If `holdout` is None too, class folders in `data_dir` itself serve
    both splits.

    Warnings say which folder is evaluated if there is a choice, which classes have few images held
    out, and which files were left out.

    Arguments are those of `open_source`.

    Raises:
      UsageError: if a folder is missing, empty or a dangling link, or the splits have different
        classes.
    """
    roots = find_roots(data_dir)
    left_out: Counter[str] = Counter()
    files = list_split(roots, split, holdout, left_out)
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


def list_split(
    roots: Roots, split: str, holdout: float | None, left_out: Counter[str]
) -> FolderSplit:
    """Returns the images of a split, and counts other files in `left_out`.

    Raises:
      UsageError: as `load_folder`.
    """
    root = split_root(roots, split, holdout)
    class_names, beside = list_classes(root)
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


def _images(folder: str, left_out: Counter[str]) -> list[str]:
    others: Counter[str] = Counter()
    files = list_images(folder, others)
    if not files:
        counts = f", but {counted(others)}" if others else ""
        raise UsageError(f"the class folder {folder} has no images such as .jpg or .png{counts}")
    left_out.update(others)
    return files


def _record(path: str, label: int) -> Record:
    """Reads a file. A dangling link becomes an unreadable record, which is a corrupt image."""
    try:
        with open(path, "rb") as file:
            return Record(file.read(), label, path)
    except OSError as error:
        if dangling := missing_target(path):
            return Record(b"", label, path, dangling)
        raise UsageError(f"cannot read the image {path}: {error.strerror}") from error


def _warn_of_few(files: FolderSplit) -> None:
    sizes = zip(files.class_names, files.class_sizes(), strict=True)
    if few := [f"{name} {size}" for name, size in sizes if size < _FEWEST]:
        warn_once(
            "%s: classes with fewer than %d evaluation images: %s; add images or a "
            "val folder, since accuracy on so few is uncertain",
            files.root,
            _FEWEST,
            shortened(few),
        )


def _say_what_is_unusual(files: FolderSplit, left_out: Counter[str]) -> None:
    depth = os.path.join(files.root, "class", "file").count(os.sep)
    nested, total = sum(path.count(os.sep) > depth for path in files.paths), len(files.paths)
    if nested == total:
        warn_once(
            "%s: the classes are its folders, %s, but all %d images are in subfolders of these; if "
            "those are the classes, set --config.data.data_dir=%s, or gather them in one folder",
            files.root,
            shortened(files.class_names, 3),
            total,
            os.path.join(files.root, files.class_names[0]),
        )
    elif nested:
        inform_once(f"{files.root}: {nested} of {total} images are in subfolders of class folders")
    if left_out:
        warn_once("%s: left out %s", files.root, counted(left_out))
