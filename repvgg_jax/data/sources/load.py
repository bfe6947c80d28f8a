"""`load_source`: from the two config words `data.source` and `data.name` to a source."""

from __future__ import annotations

from repvgg_jax.data.sources.base import Source, check_label
from repvgg_jax.data.sources.digits import load_digits
from repvgg_jax.data.sources.folder import load_folder
from repvgg_jax.data.sources.memory import load_into_memory
from repvgg_jax.data.sources.tfds import load_prepared
from repvgg_jax.errors import UsageError

SOURCES = ("digits", "tfds", "folder")
SPLITS = ("train", "test")

# Decoded bytes below which a set of images of one size lives in memory.
IN_MEMORY_BYTES = 2 << 30


def load_source(
    source: str,
    name: str,
    data_dir: str | None,
    split: str,
    *,
    num_classes: int | None = None,
    skip_corrupt: bool = False,
) -> Source:
    """Open a data set; nothing is ever downloaded.

    Args:
      source: "digits" (bundled with scikit-learn, 8x8), "tfds" (a prepared array_record data set)
        or "folder" (class folders of image files).
      name: for "tfds" the data set, with its config and version where wanted:
        `cifar10`, `cifar10:3.0.2`, `imagenette/320px-v2`. For the others a name for messages.
      data_dir: for "tfds" where data sets were prepared (None: $TFDS_DATA_DIR, else
        ~/tensorflow_datasets); for "folder" the folder.
      split: "train", or "test": the images with labels that are not trained on. Where a data set
        has both a validation and a test split, these are the validation images.
      num_classes: the net's; every label must be below it. Checked here for folders and sets in
        memory, when read for streamed ones.
      skip_corrupt: leave out images that cannot be decoded, with a warning each, instead of
        raising when they are met.

    Returns:
      The source. Digits, and prepared sets of one image size below 2 GiB, are in memory.

    Raises:
      UsageError: an unknown word, a missing or unusable data set, a label out of range, and a
        corrupt image in a set that is loaded into memory.
    """
    if source not in SOURCES:
        raise UsageError(f"unknown data.source={source!r}; one of: {', '.join(SOURCES)}")
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}; one of: {', '.join(SPLITS)}")
    if source == "digits":
        digits = load_digits(split)
        if num_classes is not None:
            for label in digits.class_names:
                check_label(int(label), num_classes, "the digits")
        return digits
    if source == "folder":
        return load_folder(
            name, data_dir, split, num_classes=num_classes, skip_corrupt=skip_corrupt
        )
    encoded, image_bytes = load_prepared(
        name, data_dir, split, num_classes=num_classes, skip_corrupt=skip_corrupt
    )
    small = image_bytes is not None and image_bytes * len(encoded) < IN_MEMORY_BYTES
    return load_into_memory(encoded) if small else encoded
