"""Data sets in TensorFlow Datasets' array_record format, read without TensorFlow."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from repvgg_jax.data.sources.base import EncodedSource, Record
from repvgg_jax.errors import UsageError, one_line, reraise
from repvgg_jax.runtime.files import local_path, read_json

_INFO = "dataset_info.json"
_FORMAT = "array_record"

# The validation split comes first, since ImageNet's "test" has no labels.
_SPLITS = {"train": ("train",), "test": ("validation", "test")}


class NotPreparedError(UsageError):
    """An error for a data set that must be prepared; the message contains the command.

    Args:
      problem: start of the message, before the command.
      name: data set.
      root: `data.data_dir`.
      rest: end of the message.
      config: config file in the command.
    """

    def __init__(
        self, problem: str, name: str, root: str, rest: str = "", config: str = "configs/default.py"
    ):
        command = f"python main.py --mode=prepare --config {config} --config.data.name={name}"
        super().__init__(f"{problem} `{command} --config.data.data_dir={root}`{rest}")
        self._parts = problem, name, root, rest

    def with_config(self, config: str) -> "NotPreparedError":
        """Returns the error with another config file in its command."""
        return NotPreparedError(*self._parts, config)


def load_prepared(
    name: str,
    data_dir: str | None,
    split: str,
    *,
    num_classes: int | None = None,
    skip_corrupt: bool = False,
) -> EncodedSource:
    """Opens `<data_dir>/<name>/<version>`, the newest version unless `name` ends in `:version`.

    Arguments are those of `open_source`.

    Raises:
      UsageError: if the data set is missing (the message has the command that prepares it), has
        another file format, is damaged, or lacks the split or the features `image` and `label`.
    """
    root = data_root(data_dir)
    directory = _find(name, root)
    _check_format(directory, name, root)

    # Imported here, since importing TFDS takes a second.
    import tensorflow_datasets as tfds

    builder = _builder(directory)
    features, splits = builder.info.features, builder.info.splits
    key = _split_key(splits, split, directory)
    class_names = _check_features(features, directory, num_classes)
    # array_record's own errors do not name the data set.
    named = partial(
        reraise,
        (RuntimeError, ValueError, OSError),
        lambda error: UsageError(
            f"the {key} shards in {directory} cannot be read ({one_line(error)}); prepare the data "
            "set again"
        ),
    )
    with named():
        records = builder.as_data_source(split=key, decoders={"image": tfds.decode.SkipDecoding()})

    def read(indices: Sequence[int]) -> list[Record]:
        with named():
            rows = records.__getitems__(list(indices))
        return [
            Record(row["image"], int(row["label"]), f"record {index} of {directory} ({key})")
            for index, row in zip(indices, rows, strict=True)
        ]

    with named():
        size = len(records)
    height, width, _ = features["image"].shape
    return EncodedSource(
        name=f"{name} {key} in {directory}",
        class_names=class_names,
        size=size,
        read=read,
        label_range=min(num_classes or len(class_names), len(class_names)),
        skip_corrupt=skip_corrupt,
        version=Path(directory).name,
        image_size=(height, width) if height and width else None,
    )


def data_root(data_dir: str | None) -> str:
    """Returns the folder of prepared data sets: `data_dir` if given, else the default of TFDS."""
    if data_dir:
        return os.fspath(local_path(data_dir, "data.data_dir"))
    default = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    return os.fspath(local_path(default, "TFDS_DATA_DIR"))


def _find(name: str, root: str) -> str:
    """Returns the version folder of a data set."""
    dataset, _, wanted = name.partition(":")
    folder = Path(root, dataset)
    if not re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)?(:\d+\.\d+\.\d+)?", name):
        raise UsageError(
            f"data.name={name!r}: must be name, name/config, name:version or name/config:version"
        )
    found = sorted(_versions(folder), key=lambda version: tuple(map(int, version.split("."))))
    if wanted in found or (found and not wanted):
        return os.fspath(folder / (wanted or found[-1]))
    if found:
        raise UsageError(f"{folder} has no version {wanted}; it has {', '.join(found)}")
    configs = sorted(sub.name for sub in _folders(folder) if _versions(sub))
    if configs:
        choices = ", ".join(f"{dataset}/{config}" for config in configs)
        raise UsageError(f"{folder} has several configs; set data.name to one of {choices}")
    raise NotPreparedError(
        f"{name} is not prepared under {root}; prepare it with",
        name,
        root,
        ", or use data.source=folder with data.data_dir for class folders",
    )


def _folders(folder: Path) -> list[Path]:
    return [sub for sub in folder.iterdir() if sub.is_dir()] if folder.is_dir() else []


def _versions(folder: Path) -> list[str]:
    return [
        sub.name
        for sub in _folders(folder)
        if re.fullmatch(r"\d+\.\d+\.\d+", sub.name) and (sub / _INFO).exists()
    ]


def _check_format(directory: str, name: str, root: str) -> None:
    info = read_json(Path(directory, _INFO), "prepare the data set again")
    formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
    if _FORMAT not in formats:
        raise NotPreparedError(
            f"{directory} is prepared as {formats[0]}, which requires TensorFlow; move it away and "
            f"prepare it as {_FORMAT}:",
            name,
            root,
        )


def _builder(directory: str) -> Any:
    """Returns TFDS's builder of a data set, set up to read array_record files."""
    import tensorflow_datasets as tfds

    # json, protobuf and TFDS raise different exceptions for broken files.
    with reraise(
        Exception,
        lambda error: UsageError(
            f"{directory}: {_INFO} or features.json cannot be read ({one_line(error, 160)}); "
            "prepare the data set again"
        ),
    ):
        builder = tfds.builder_from_directory(directory)
        if builder.info.file_format.value != _FORMAT:  # array_record is an alternative format
            builder.info.set_file_format(_FORMAT, override=True, override_if_initialized=True)
    return builder


def _split_key(splits: Mapping[str, Any], split: str, directory: str) -> str:
    """Returns the key of the split `train` or `test`, after checking that its files exist."""
    key = next((key for key in _SPLITS[split] if key in splits), None)
    if key is None:
        raise UsageError(
            f"{directory} has no split for {split!r} ({' or '.join(_SPLITS[split])}); "
            f"it has {', '.join(splits) or 'none'}"
        )
    for path in splits[key].filepaths:
        if not os.path.exists(path):
            raise UsageError(f"{path} is missing; prepare the incomplete data set again")
    return key


def _check_features(features: Any, directory: str, num_classes: int | None) -> tuple[str, ...]:
    """Returns the class names, or the integers as text if the labels have no names."""
    import tensorflow_datasets as tfds

    found = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    label = found.get("label")
    if not isinstance(found.get("image"), tfds.features.Image):
        wanted = "'image' of type Image"
    elif isinstance(label, tfds.features.ClassLabel) and label.num_classes:
        return tuple(label.names)
    elif isinstance(label, tfds.features.Scalar) and num_classes is not None:
        return tuple(str(index) for index in range(num_classes))
    else:
        wanted = "'label' of type ClassLabel"
    listed = ", ".join(f"{key} ({type(value).__name__})" for key, value in found.items())
    raise UsageError(f"{directory} must have a feature {wanted}; it has {listed or 'none'}")
