"""Images of handwritten digits that are bundled with scikit-learn."""

import numpy as np

from repvgg_jax.data.sources.base import ArraySource


def load_digits(split: str) -> ArraySource:
    """Returns a split of the 1,797 images of 8x8 pixels; every fifth is in "test" (360 images).

    Gray levels are scaled from 0..16 to 0..255 and repeated to three channels.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    gray = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    chosen = (np.arange(len(gray)) % 5 == 0) == (split == "test")
    return ArraySource(
        name=f"digits {split}",
        class_names=tuple(str(name) for name in bunch.target_names),
        images=np.repeat(gray[chosen][..., None], 3, axis=-1),
        labels=bunch.target[chosen].astype(np.int32),
    )
