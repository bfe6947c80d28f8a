"""Data sets prepared by TensorFlow Datasets as array_record, read without TensorFlow."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from repvgg_jax.data.prepare.official import SETS
from repvgg_jax.data.sources.base import EncodedSource, Record
from repvgg_jax.errors import UsageError, one_line

_INFO = "dataset_info.json"
_FORMAT = "array_record"

# ImageNet calls what has labels "validation"; its "test" has none.
_SPLITS = {"train": ("train",), "test": ("validation", "test")}


def load_prepared(
    name: str,
    data_dir: str | None,
    split: str,
    *,
    num_classes: int | None = None,
    skip_corrupt: bool = False,
) -> tuple[EncodedSource, int | None]:
    """Open `<data_dir>/<name>/<version>`, the newest version unless `name` ends in `:version`.

    Returns:
      The source, and the decoded bytes of an image (None where sizes differ).

    Raises:
      UsageError: where the set is missing (with the command that prepares it), in another file
        format, damaged or incomplete, without such a split, or without `image` and `label`.
    """
    root = data_root(data_dir)
    directory = _find(name, root)
    _check_format(directory, name, root)

    # Imported here: this takes a second, which `import repvgg_jax` need not.
    import tensorflow_datasets as tfds

    builder = _builder(directory)
    features, splits = builder.info.features, builder.info.splits
    key = next((key for key in _SPLITS[split] if key in splits), None)
    if key is None:
        raise UsageError(
            f"{directory} has no split for {split!r}: wanted {' or '.join(_SPLITS[split])}, "
            f"it has {', '.join(splits) or 'none'}"
        )
    _check_files(splits[key])
    class_names = _check_features(features, directory, num_classes)
    with _naming(directory, key):
        records = builder.as_data_source(split=key, decoders={"image": tfds.decode.SkipDecoding()})

    def read(indices: Sequence[int]) -> list[Record]:
        with _naming(directory, key):
            rows = records.__getitems__(list(indices))
        return [
            Record(row["image"], int(row["label"]), f"record {index} of {directory} ({key})")
            for index, row in zip(indices, rows, strict=True)
        ]

    with _naming(directory, key):
        size = len(records)
    source = EncodedSource(
        name=f"{name} {key} in {directory}",
        class_names=class_names,
        size=size,
        read=read,
        label_range=min(num_classes or len(class_names), len(class_names)),
        skip_corrupt=skip_corrupt,
    )
    height, width, _ = features["image"].shape
    return source, height * width * 3 if height and width else None


def data_root(data_dir: str | None) -> str:
    """Where data sets lie: TFDS's own default without a `data_dir`."""
    default = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
    return os.path.expanduser(data_dir or default)


@contextmanager
def _naming(directory: str, split: str) -> Iterator[None]:
    """Names the data set in the errors of a damaged shard, which say only what is wrong inside."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(
            f"the {split} shards in {directory} cannot be read ({one_line(error)}); "
            "prepare them again"
        ) from error


def _find(name: str, root: str) -> str:
    """The version folder of a data set."""
    from etils import epath  # also opens gs:// paths

    dataset, _, wanted = name.partition(":")
    folder = epath.Path(root) / dataset
    if not re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)?(:\d+\.\d+\.\d+)?", name):
        raise UsageError(
            f"data.name={name!r} is no data set; expected name, name/config or name:version"
        )
    found = sorted(_versions(folder), key=lambda version: tuple(map(int, version.split("."))))
    if wanted in found or (found and not wanted):
        return os.fspath(folder / (wanted or found[-1]))
    if found:
        raise UsageError(f"{folder} has no version {wanted}, only {', '.join(found)}")
    configs = sorted(sub.name for sub in _folders(folder) if _versions(sub))
    if configs:
        choices = ", ".join(f"{dataset}/{config}" for config in configs)
        raise UsageError(f"{folder} holds configs: set data.name to one of {choices}")
    raise UsageError(
        f"no prepared {name} under {root}; prepare it once: `{_command(name, root)}`; "
        "or point data.source=folder and data.data_dir at class folders"
    )


def _folders(folder: Any) -> list[Any]:
    return [sub for sub in folder.iterdir() if sub.is_dir()] if folder.is_dir() else []


def _versions(folder: Any) -> list[str]:
    return [
        sub.name
        for sub in _folders(folder)
        if re.fullmatch(r"\d+\.\d+\.\d+", sub.name) and (sub / _INFO).exists()
    ]


def _command(name: str, root: str) -> str:
    """What prepares a set; TFDS itself, which needs tensorflow for it, those that we don't."""
    dataset = name.partition(":")[0]
    known = next((known for known in SETS if f"{known}/".startswith(f"{dataset}/")), None)
    if known is None:
        return (
            "pip install tensorflow tensorflow-datasets && "
            f"tfds build {name} --file_format={_FORMAT} --data_dir={root}"
        )
    by_hand = [archive.file_name for archive in SETS[known].archives if archive.by_hand]
    manual = f" --config.data.manual_dir=<folder with {' and '.join(by_hand)}>" if by_hand else ""
    return (
        "python main.py --mode=prepare --config configs/default.py "
        f"--config.data.name={known} --config.data.data_dir={root}{manual}"
    )


def _check_format(directory: str, name: str, root: str) -> None:
    from etils import epath

    try:
        info = json.loads((epath.Path(directory) / _INFO).read_text())
    except ValueError as error:
        raise UsageError(f"{directory}/{_INFO} is no JSON: {error}; prepare it anew") from error
    if not isinstance(info, dict):
        raise UsageError(f"{directory}/{_INFO} describes no data set; prepare it anew")
    formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
    if _FORMAT not in formats:
        raise UsageError(
            f"{directory} is prepared as {formats[0]}, which needs tensorflow to read; move it "
            f"away and prepare it as {_FORMAT}: `{_command(name, root)}`"
        )


def _builder(directory: str) -> Any:
    """What TFDS knows of the data set; its splits name the array_record files."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
        if builder.info.file_format.value != _FORMAT:  # array_record is the second format here
            builder.info.set_file_format(_FORMAT, override=True, override_if_initialized=True)
    except Exception as error:  # json, protobuf and TFDS raise a type each for broken files
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        raise UsageError(
            f"{directory}: {_INFO} or features.json cannot be read ({reason}); "
            "prepare the data set anew"
        ) from error
    return builder


def _check_files(split: Any) -> None:
    from etils import epath

    for path in split.filepaths:
        if not epath.Path(path).exists():
            raise UsageError(f"{path} is missing: the data set is incomplete; prepare it anew")


def _check_features(features: Any, directory: str, num_classes: int | None) -> tuple[str, ...]:
    """The class names; plain numbers where labels are integers without names."""
    import tensorflow_datasets as tfds

    found = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    if not isinstance(found.get("image"), tfds.features.Image):
        raise UsageError(_no_feature(directory, "image", "an Image", found))
    label = found.get("label")
    if isinstance(label, tfds.features.ClassLabel) and label.num_classes:
        return tuple(label.names)
    if isinstance(label, tfds.features.Scalar) and num_classes is not None:
        return tuple(str(index) for index in range(num_classes))
    raise UsageError(_no_feature(directory, "label", "a ClassLabel", found))


def _no_feature(directory: str, name: str, kind: str, found: dict[str, Any]) -> str:
    listed = ", ".join(f"{key} ({type(value).__name__})" for key, value in found.items())
    return (
        f"{directory} has no feature {name!r} that is {kind}, only {listed or 'none'}; "
        "use a classification data set"
    )
