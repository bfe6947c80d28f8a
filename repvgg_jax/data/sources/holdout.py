"""Deterministic choice of the images to hold out for evaluation.

Each image is chosen by a hash of its own name, whatever other images there are. Taking the first
fifth of a ranking would make the share exact, but as images are added, others would move from
training to evaluation: a resumed run, or one that starts from an earlier run, would silently be
evaluated on images that it was trained on. The price is that the share of small classes varies: of
three classes of 30 images, a share of 0.2 takes 9, 2 and 4 images, not 6 each. `load_folder` warns
of classes with few evaluation images.
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterable


def held_out(paths: Iterable[str], root: str, share: float) -> set[str]:
    """Returns the paths of a class that are held out: about `share` of them.

    Each path relative to `root` has a fixed position in [0, 1), from a hash of its name, and is
    held out if the position is below `share`. So the choice is the same on every machine, and an
    image does not change sides when others are added or removed, which would put images that an
    earlier run was trained on into the evaluation of a later one. The only exception: of a class
    with two images or more, at least one is on each side.

    Args:
      paths: paths of the images of one class, below `root`.
      root: folder that contains the class folders.
      share: share of the images to hold out, in (0, 1).
    """
    positions = sorted((_position(os.path.relpath(path, root)), path) for path in paths)
    count = sum(position < share for position, _ in positions)
    count = min(max(count, 1), len(positions) - 1)
    return {path for _, path in positions[:count]}


def _position(name: str) -> float:
    """Returns a number in [0, 1) from a file name, equal for all encodings of accented letters."""
    text = unicodedata.normalize("NFC", name).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest()) / 2**56
