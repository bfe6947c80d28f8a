"""Images of handwritten digits that are bundled with scikit-learn."""

import importlib.util
from pathlib import Path

import numpy as np

from repvgg_jax.data.sources.base import ArraySource
from repvgg_jax.errors import UsageError

_TABLE = "datasets/data/digits.csv.gz"  # in scikit-learn


def load_digits(split: str) -> ArraySource:
    """Returns a split of the 1,797 images of 8x8 pixels; every fifth is in "test" (360 images).

    Gray levels are scaled from 0..16 to 0..255 and repeated to three channels.
    """
    table = _read_table()
    gray = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    chosen = (np.arange(len(gray)) % 5 == 0) == (split == "test")
    return ArraySource(
        name=f"digits {split}",
        class_names=tuple("0123456789"),
        images=np.repeat(gray[chosen][..., None], 3, axis=-1),
        labels=table[chosen, -1].astype(np.int32),
    )


def _read_table() -> np.ndarray:
    """Returns a row for each image: 64 gray levels and the label.

    The file is read without importing scikit-learn, which takes two seconds.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UsageError("data.source=digits needs scikit-learn; install it with pip")
    return np.loadtxt(Path(package.origin).parent / _TABLE, delimiter=",")
