"""Images for tests of augmentation."""

from __future__ import annotations

import numpy as np
from PIL import Image


def photograph(seed=0, size=40):
    """Returns smooth, slightly noisy shapes in color, which every operation changes visibly."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 200, (6, 6, 3), np.uint8)).resize((size, size))
    return np.clip(np.asarray(coarse) + rng.integers(0, 30, (size, size, 3)), 0, 255).astype(
        np.uint8
    )


def rng_of(seed):
    return np.random.default_rng(seed)


def recorded(monkeypatch, table):
    """Records the operations of a table that are applied, and their magnitudes."""
    drawn = []
    for name, entry in table.items():
        record = entry._replace(
            apply=lambda image, strength, *_, name=name: drawn.append((name, strength)) or image
        )
        monkeypatch.setitem(table, name, record)
    return drawn
