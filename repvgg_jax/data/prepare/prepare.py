"""`prepare`: from the official archives to a set that TFDS and `load_source` read.

TFDS itself needs TensorFlow for this; here its stock builders give features, class names and
metadata, and the records are written by array_record in the order of the archives. Nothing is
shuffled: readers do that, ours among all images of a split.
"""

from __future__ import annotations

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
from repvgg_jax.data.prepare.progress import ProgressMeter
from repvgg_jax.data.prepare.shards import Draft, locked
from repvgg_jax.data.sources.tfds import data_root, load_prepared
from repvgg_jax.errors import UsageError, one_line

SHARD_BYTES = 128 << 20  # ImageNet's training split becomes about 1,100 files


def prepare(
    name: str,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    *,
    sets: Mapping[str, DataSet] = SETS,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a data set into `<data_dir>/<name>/<version>` as array_record, unless it is there.

    Archives are looked for in `manual_dir` and in `<data_dir>/downloads`, and else downloaded into
    the latter. The set is written in `<version>.incomplete` and named at the end; where the process
    dies, the next call goes on after the last shard that was finished.

    Args:
      name: a key of `sets`, `:version` allowed behind it.
      data_dir: $TFDS_DATA_DIR, else ~/tensorflow_datasets, if None.
      manual_dir: a folder of archives; `<data_dir>/downloads/manual`, as TFDS has it, if None.
      sets: what can be prepared.
      shard_bytes: records' bytes from which a file is full.

    Returns:
      The folder.

    Raises:
      UsageError: an unknown set, an archive that is missing, truncated or not the published one, a
        folder that cannot be written to, no space left, another process at the same.
    """
    data_set = _known(name, sets)
    target, downloads = _target(name, data_dir), Path(_root(data_dir), "downloads")
    if find_prepared(name, data_dir, sets=sets):
        return target
    manual = Path(manual_dir).expanduser() if manual_dir else None
    found = locate(data_set.archives, downloads, manual)
    with _naming(target), locked(target.with_name(f"{target.name}.lock")):
        # Another process may have written it before this one got the lock.
        if not find_prepared(name, data_dir, sets=sets):
            identity = {"archives": [a.checksum for a in data_set.archives], "shard": shard_bytes}
            draft = Draft(target.with_name(f"{target.name}.incomplete"), identity)
            paths = fetch(data_set.archives, found, downloads, draft.verified)
            draft.save()
            _write(data_set, paths, _builder(name, draft.folder), draft, shard_bytes)
            draft.finish(target)
    return target


def find_prepared(
    name: str, data_dir: str | None = None, *, sets: Mapping[str, DataSet] = SETS
) -> Path | None:
    """The folder of a set that is already prepared, None where there is none.

    Raises:
      UsageError: an unknown set, and a folder that holds something else or a damaged set.
    """
    _known(name, sets)
    target = _target(name, data_dir)
    if not target.exists():
        return None
    if not (target / "dataset_info.json").exists():
        raise UsageError(f"{target} exists and is no prepared data set; move it away")
    for split in ("train", "test"):
        load_prepared(f"{name.partition(':')[0]}:{target.name}", _root(data_dir), split)
    return target


def describe_splits(path: Path) -> str:
    """A prepared set in a line: its splits, how many images they have, in how many files."""
    import tensorflow_datasets as tfds

    splits = tfds.builder_from_directory(path).info.splits
    return ", ".join(
        f"{split}: {info.num_examples:,} images in {info.num_shards:,} "
        f"file{'s' if info.num_shards > 1 else ''}"
        for split, info in splits.items()
    )


def _known(name: str, sets: Mapping[str, DataSet]) -> DataSet:
    dataset = name.partition(":")[0]
    if dataset in sets:
        return sets[dataset]
    close = [known for known in sets if known.startswith(f"{dataset}/")]
    close = close or difflib.get_close_matches(dataset, sets, n=1)
    raise UsageError(
        f"data.name={name}: --mode=prepare knows {', '.join(sets)}"
        + (f"; did you mean {' or '.join(close)}?" if close else "")
    )


def _root(data_dir: str | None) -> str:
    root = data_root(data_dir)
    if "://" in root:
        raise UsageError(f"data.data_dir={root}: sets are prepared in a local folder; copy it then")
    return os.path.abspath(root)


def _target(name: str, data_dir: str | None) -> Path:
    import tensorflow_datasets as tfds

    name, _, wanted = name.partition(":")
    version = str(tfds.builder_cls(name.partition("/")[0]).VERSION)
    if wanted not in ("", version):
        raise UsageError(f"data.name={name}:{wanted}: TFDS prepares version {version} of it")
    return Path(_root(data_dir), name, version)


def _builder(name: str, folder: Path) -> Any:
    """TFDS's stock builder of a set, with the features and metadata that come with TFDS."""
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition(":")[0].partition("/")
    # It reads what it finds prepared in its folder: nothing, in that of the draft.
    return tfds.builder_cls(dataset)(
        data_dir=os.fspath(folder), config=config or None, file_format="array_record"
    )


def _write(
    data_set: DataSet, paths: Sequence[Path], builder: Any, draft: Draft, shard_bytes: int
) -> None:
    # Compressed images don't shrink further, and CIFAR's PNGs are smaller than its archive.
    size = sum(archive.size for archive in data_set.archives)
    check_space(draft.folder, size - sum(map(draft.num_bytes, data_set.splits)))
    for feature, member in data_set.names.items():
        builder.info.features[feature].names = class_names(paths[0], member)
    for name, split in data_set.splits.items():
        _write_split(draft, name, split, paths, builder.info.features, shard_bytes)
    _describe_splits(draft, builder, size, list(data_set.splits))


def _write_split(
    draft: Draft, name: str, split: Split, paths: Sequence[Path], features: Any, shard_bytes: int
) -> None:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    serializer = ExampleSerializer(features.get_serialized_info())
    done = sum(draft.lengths(name))
    with ProgressMeter(f"writing {name}", split.size, "images", done) as meter:

        def records(skip: int) -> Iterator[bytes]:
            for example in split.read(paths, skip):
                yield serializer.serialize_example(features.encode_example(example))
                meter.add(1)

        draft.write(name, records, shard_bytes)


def _describe_splits(draft: Draft, builder: Any, download_size: int, splits: Sequence[str]) -> None:
    """Names for the shards, and TFDS's metadata."""
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
def _naming(target: Path) -> Iterator[None]:
    """One line for what disks and archives raise."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, KeyError) as error:
        raise UsageError(
            f"an archive of {target.parent.name} cannot be read "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error
    except (OSError, RuntimeError) as error:  # array_record raises the latter, with a status
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise UsageError(
                f"no space left for {target}: make room and give the same command, which goes on "
                "after the last finished file"
            ) from error
        where = getattr(error, "filename", None) or target
        raise UsageError(
            f"{where}: {one_line(error)}; data.data_dir must be a folder that can be written to"
        ) from error
