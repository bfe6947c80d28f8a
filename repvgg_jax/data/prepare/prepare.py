"""Preparation of a data set from its official archives, in the format of TFDS.

TFDS itself requires TensorFlow for preparation. This module only takes features, class names and
metadata from TFDS's builders, and writes the records with array_record, in the order of the
archives. The records are not shuffled, since the training stream shuffles all images of a split.
"""

import difflib
import errno
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repvgg_jax.data.prepare.archives import check_space, fetch, locate
from repvgg_jax.data.prepare.official import SETS, DataSet, Split, class_names
from repvgg_jax.data.prepare.progress import progress
from repvgg_jax.data.prepare.shards import Draft
from repvgg_jax.data.sources.tfds import data_root, load_prepared
from repvgg_jax.errors import UsageError, one_line
from repvgg_jax.runtime.files import local_path
from repvgg_jax.runtime.lock import locked

SHARD_BYTES = 128 << 20  # about 1,100 files for ImageNet's training split


def prepare(
    name: str,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    *,
    sets: Mapping[str, DataSet] = SETS,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes a data set into `<data_dir>/<name>/<version>` as array_record, unless it exists.

    Archives that are not in `manual_dir` or `<data_dir>/downloads` are downloaded into
    `<data_dir>/downloads`. The data set is written to `<version>.incomplete`, which is renamed at
    the end. If the process dies, the next call resumes after the last finished shard.

    Example:
      >>> prepare("cifar10", data_dir="~/tensorflow_datasets")

    Args:
      name: a key of `sets`, optionally followed by `:version`.
      data_dir: folder of prepared data sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
      manual_dir: folder of archives; by default `<data_dir>/downloads/manual`, as in TFDS.
      sets: data sets that can be prepared.
      shard_bytes: size of a shard's records in bytes.

    Returns:
      The folder of the data set.

    Raises:
      UsageError: if the data set is unknown, an archive is missing or not the published one, a
        folder is not writable, or no space is left.
      HeldError: if another process is preparing the data set.
    """
    data_set = _lookup(name, sets)
    target, downloads = _target(name, data_dir), Path(_root(data_dir), "downloads")
    if find_prepared(name, data_dir, sets=sets):
        return target
    manual = local_path(manual_dir, "data.manual_dir") if manual_dir else None
    found = locate(data_set.archives, downloads, manual)
    with _one_line_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _one_line_errors(target), locked(target.parent, name=f"{target.name}.lock"):
        # Another process may have written the data set before this one acquired the lock.
        if not find_prepared(name, data_dir, sets=sets):
            identity = {"archives": [a.checksum for a in data_set.archives], "shard": shard_bytes}
            draft = Draft(target.with_name(f"{target.name}.incomplete"), identity)
            paths = fetch(data_set.archives, found, downloads, draft.verified)
            draft.save()
            _write_data_set(data_set, paths, _builder(name, draft.folder), draft, shard_bytes)
            draft.finish(target)
    return target


def find_prepared(
    name: str, data_dir: str | None = None, *, sets: Mapping[str, DataSet] = SETS
) -> Path | None:
    """Returns the folder of a data set if it is already prepared, else None.

    Raises:
      UsageError: if the data set is unknown or damaged, or its folder has other contents.
    """
    _lookup(name, sets)
    target = _target(name, data_dir)
    if not target.exists():
        return None
    if not (target / "dataset_info.json").exists():
        raise UsageError(f"{target} exists but is not a prepared data set; move or delete it")
    for split in ("train", "test"):
        load_prepared(f"{name.partition(':')[0]}:{target.name}", _root(data_dir), split)
    return target


def describe_splits(path: Path) -> str:
    """Returns a summary of a prepared data set: images and files of each split, in one line."""
    import tensorflow_datasets as tfds

    splits = tfds.builder_from_directory(path).info.splits
    parts = []
    for split, info in splits.items():
        files = "files" if info.num_shards > 1 else "file"
        parts.append(f"{split}: {info.num_examples:,} images in {info.num_shards:,} {files}")
    return ", ".join(parts)


def _lookup(name: str, sets: Mapping[str, DataSet]) -> DataSet:
    dataset = name.partition(":")[0]
    if dataset in sets:
        return sets[dataset]
    close = [known for known in sets if known.startswith(f"{dataset}/")]
    close = close or difflib.get_close_matches(dataset, sets, n=1)
    advice = f"did you mean {' or '.join(close)}?"
    if not close:
        install = "pip install tensorflow tensorflow-datasets"
        advice = f"use TFDS for others: {install} && tfds build {name} --file_format=array_record"
    raise UsageError(f"data.name={name}: --mode=prepare supports {', '.join(sets)}; {advice}")


def _root(data_dir: str | None) -> str:
    return os.path.abspath(data_root(data_dir))


def _target(name: str, data_dir: str | None) -> Path:
    import tensorflow_datasets as tfds

    name, _, wanted = name.partition(":")
    version = str(tfds.builder_cls(name.partition("/")[0]).VERSION)
    if wanted not in ("", version):
        raise UsageError(f"data.name={name}:{wanted}: only version {version} can be prepared")
    return Path(_root(data_dir), name, version)


def _builder(name: str, folder: Path) -> Any:
    """Returns TFDS's builder of a data set, with its features and metadata."""
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition(":")[0].partition("/")
    # A builder loads an existing data set from its folder; the draft's folder has none.
    return tfds.builder_cls(dataset)(
        data_dir=os.fspath(folder), config=config or None, file_format="array_record"
    )


def _write_data_set(
    data_set: DataSet, paths: Sequence[Path], builder: Any, draft: Draft, shard_bytes: int
) -> None:
    # Records need about as much space as the archives, or less (CIFAR).
    size = sum(archive.size for archive in data_set.archives)
    check_space(draft.folder, size - sum(map(draft.num_bytes, data_set.splits)))
    for feature, member in data_set.names.items():
        builder.info.features[feature].names = class_names(paths[0], member)
    for name, split in data_set.splits.items():
        _write_split(draft, name, split, paths, builder.info.features, shard_bytes)
    _finish_metadata(draft, builder, size, list(data_set.splits))


def _write_split(
    draft: Draft, name: str, split: Split, paths: Sequence[Path], features: Any, shard_bytes: int
) -> None:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    serializer = ExampleSerializer(features.get_serialized_info())
    done = sum(draft.lengths(name))
    with progress(f"writing {name}", split.size, "images", done) as add:

        def records(skip: int) -> Iterator[bytes]:
            for example in split.read(paths, skip):
                yield serializer.serialize_example(features.encode_example(example))
                add(1)

        draft.write(name, records, shard_bytes)


def _finish_metadata(draft: Draft, builder: Any, download_size: int, splits: Sequence[str]) -> None:
    """Gives the shards their final names and writes TFDS's metadata."""
    from etils import epath
    from tensorflow_datasets.core.splits import SplitDict, SplitInfo

    infos = []
    for split in splits:
        pattern = f"{builder.name}-{split}.array_record-{{index:05d}}-of-{{count:05d}}"
        draft.name_shards(split, pattern)
        lengths, size = draft.lengths(split), draft.num_bytes(split)
        infos.append(SplitInfo(name=split, shard_lengths=lengths, num_bytes=size))
    info = builder.info
    info.set_splits(SplitDict(infos))
    info.download_size = download_size
    info.write_to_directory(epath.Path(draft.folder))


@contextmanager
def _one_line_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, KeyError) as error:
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"an archive of {target.parent.name} cannot be read ({cause})") from error
    except (OSError, RuntimeError) as error:  # array_record raises a RuntimeError with a status
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            message = (
                f"no space left for {target}: free some space and run the same command again, "
                "which resumes after the last finished file"
            )
        else:
            where = getattr(error, "filename", None) or target
            message = f"{where}: {one_line(error)}; data.data_dir must be a writable folder"
        raise UsageError(message) from error
