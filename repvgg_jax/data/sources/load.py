"""Opening of a data set by the config values `data.source` and `data.name`."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from repvgg_jax.data.sources.base import ArraySource, EncodedSource, Example, Source, check_label
from repvgg_jax.data.sources.digits import load_digits
from repvgg_jax.data.sources.folder import load_folder
from repvgg_jax.data.sources.tfds import load_prepared
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.devices import cpu_cores

SOURCES = ("digits", "tfds", "folder")
SPLITS = ("train", "test")

# A prepared data set is loaded into memory if its images have one size and fewer bytes than this.
IN_MEMORY_BYTES = 2 << 30

# Records per decoding task: enough to amortize reads, but few enough to use all threads.
_CHUNK = 512


def load_source(
    source: str,
    name: str,
    data_dir: str | None,
    split: str,
    *,
    num_classes: int | None = None,
    skip_corrupt: bool = False,
    holdout: float | None = None,
) -> Source:
    """Returns a split of a data set as `open_source` does, decoded into memory if it is small.

    Example:
      >>> source = load_source("digits", "digits", None, "train")
      >>> len(source), source[0].image.shape
      (1437, (8, 8, 3))

    Arguments are those of `open_source`.

    Returns:
      The source. Digits, and prepared data sets of one image size below 2 GiB, are in memory.

    Raises:
      UsageError: if `open_source` raises it, or an image of a data set that is loaded into memory
        is corrupt or has a label out of range.
    """
    options = dict(num_classes=num_classes, skip_corrupt=skip_corrupt, holdout=holdout)
    return in_memory_if_small(open_source(source, name, data_dir, split, **options))


def open_source(
    source: str,
    name: str,
    data_dir: str | None,
    split: str,
    *,
    num_classes: int | None = None,
    skip_corrupt: bool = False,
    holdout: float | None = None,
) -> Source:
    """Opens a split of a data set, which must be available locally: nothing is downloaded.

    No image is decoded, except that digits are always in memory.

    Args:
      source: "digits" (8x8 images from scikit-learn), "tfds" (a data set prepared as array_record)
        or "folder" (class folders of image files).
      name: for "tfds", the data set, optionally with its config and version, such as `cifar10`,
        `cifar10:3.0.2` or `imagenette/320px-v2`; not used by the others.
      data_dir: for "tfds", the folder of prepared data sets (by default $TFDS_DATA_DIR or
        ~/tensorflow_datasets); for "folder", the folder of images.
      split: "train", or "test" for labeled images that are not used for training (the validation
        split, if a data set has both a validation and a test split).
      num_classes: number of classes of the net, the exclusive upper bound of labels. Labels of
        "tfds" sources are checked when they are read, all others immediately.
      skip_corrupt: whether to omit images that cannot be decoded, with a warning for each, instead
        of raising an error.
      holdout: for "folder" without an evaluation folder, the share of the images that is the test
        split and not in the training split.

    Raises:
      UsageError: if an argument is invalid, the data set is missing or unusable, or a known label
        is out of range.
    """
    check_source(source)
    if split not in SPLITS:
        raise UsageError(f"split={split!r}: choose from {', '.join(SPLITS)}")
    if holdout is not None and source != "folder":
        raise UsageError(f"data.holdout={holdout:g} is for data.source=folder only; unset it")
    if source == "digits":
        digits = load_digits(split)
        if num_classes is not None:
            for label in digits.class_names:
                check_label(int(label), num_classes, "the digits")
        return digits
    options = dict(num_classes=num_classes, skip_corrupt=skip_corrupt)
    if source == "folder":
        return load_folder(data_dir, split, holdout=holdout, **options)
    return load_prepared(name, data_dir, split, **options)


def check_source(source: str) -> None:
    """Raises UsageError for an unknown `data.source`."""
    if source not in SOURCES:
        raise UsageError(f"data.source={source!r}: choose from {', '.join(SOURCES)}")


def in_memory_if_small(source: Source) -> Source:
    """Returns the source decoded into memory if its images have one size and take below 2 GiB."""
    if isinstance(source, ArraySource) or source.image_size is None:
        return source
    height, width = source.image_size
    is_small = len(source) * height * width * 3 < IN_MEMORY_BYTES
    return load_into_memory(source) if is_small else source


def load_into_memory(source: EncodedSource) -> ArraySource:
    """Returns a source in memory with all decoded images of `source`, which must have equal sizes.

    If `source.skip_corrupt` is True, corrupt images are omitted and listed in `skipped`.

    Raises:
      CorruptImageError: if an image is corrupt and `source.skip_corrupt` is False.
      UsageError: if sizes differ, a label is out of range, or no image can be decoded.
    """

    def decode(start: int) -> list[tuple[str, Example]]:
        records = source.read(range(start, min(start + _CHUNK, len(source))))
        decoded = [(record.where, source.decode(record)) for record in records]
        return [(where, example) for where, example in decoded if example is not None]

    with ThreadPoolExecutor(cpu_cores()) as pool:
        chunks = pool.map(decode, range(0, len(source), _CHUNK))
        examples = [pair for chunk in chunks for pair in chunk]
    if not examples:
        raise UsageError(f"{source.name} has no image that can be decoded")
    shape = examples[0][1].image.shape
    for where, example in examples:
        if example.image.shape != shape:
            raise UsageError(
                f"{where} has shape {example.image.shape} but others have {shape}; "
                "an in-memory data set requires images of the same size"
            )
    return ArraySource(
        name=source.name,
        class_names=source.class_names,
        images=np.stack([example.image for _, example in examples]),
        labels=np.asarray([example.label for _, example in examples], np.int32),
        skipped=frozenset(source.skipped),
        version=source.version,
    )
