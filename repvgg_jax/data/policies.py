"""AutoAugment and RandAugment: which operations an image gets, and how strong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from repvgg_jax.data import operations as ops


class _Entry(NamedTuple):
    apply: ops.Operation
    strength: Callable[[float], float]  # of a magnitude from 0 to 10
    signed: bool = False  # whether half of the images get it the other way round


def _enhance(magnitude: float) -> float:
    return 0.9 * magnitude / 10


def _around_one(enhance: ops.Operation) -> ops.Operation:
    """1 - s or 1 + s, not below 0.1: the image itself is at 1."""
    return lambda image, strength: enhance(image, max(0.1, 1 + strength))


# Ranges of AutoAugment (arXiv 1805.09501, Table 6 of the appendix) over magnitudes 0..10, all so
# that a larger magnitude changes more: timm's "increasing" forms, and torchvision's.
OPERATIONS: dict[str, _Entry] = {
    "shear_x": _Entry(ops.shear_x, lambda m: 0.3 * m / 10, True),
    "shear_y": _Entry(ops.shear_y, lambda m: 0.3 * m / 10, True),
    "translate_x": _Entry(ops.translate_x, lambda m: 0.45 * m / 10, True),
    "translate_y": _Entry(ops.translate_y, lambda m: 0.45 * m / 10, True),
    "rotate": _Entry(ops.rotate, lambda m: 30 * m / 10, True),
    "color": _Entry(_around_one(ops.color), _enhance, True),
    "contrast": _Entry(_around_one(ops.contrast), _enhance, True),
    "brightness": _Entry(_around_one(ops.brightness), _enhance, True),
    "sharpness": _Entry(_around_one(ops.sharpness), _enhance, True),
    "posterize": _Entry(ops.posterize, lambda m: max(1, 8 - round(4 * m / 10))),
    "solarize": _Entry(ops.solarize, lambda m: max(0.0, 256 - 256 * m / 10)),
    "auto_contrast": _Entry(ops.auto_contrast, lambda m: 0.0),
    "equalize": _Entry(ops.equalize, lambda m: 0.0),
    "invert": _Entry(ops.invert, lambda m: 0.0),
}

# RandAugment's fourteen are these and the identity (arXiv 1909.13719, section 3.1).
RAND_AUGMENT = tuple(name for name in OPERATIONS if name != "invert")

# (operation, probability, magnitude on 0..9), two a sub-policy: Tables 9 and 7 of AutoAugment's
# appendix.
_Step = tuple[str, float, int]
IMAGENET: tuple[tuple[_Step, _Step], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
    (("color", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)
CIFAR10: tuple[tuple[_Step, _Step], ...] = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("auto_contrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("auto_contrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 0)),
)
AUTO_AUGMENT = {"autoaugment": IMAGENET, "autoaugment_cifar10": CIFAR10}
POLICIES = (*AUTO_AUGMENT, "randaugment")


def auto_augment(pixels: np.ndarray, rng: np.random.Generator, policy: str) -> np.ndarray:
    """One of the 25 sub-policies of AutoAugment, at random (arXiv 1805.09501, section 3).

    Args:
      pixels: uint8 [h, w, 3].
      rng: that all is drawn from.
      policy: "autoaugment", found on ImageNet, or "autoaugment_cifar10".

    Returns:
      uint8 [h, w, 3].
    """
    table = AUTO_AUGMENT[policy]
    chosen = table[int(rng.integers(len(table)))]
    # 0..9 in the paper's tables are ten even steps through the range.
    steps = [(name, 10 * level / 9) for name, chance, level in chosen if rng.random() < chance]
    return _apply(pixels, rng, steps)


def rand_augment(
    pixels: np.ndarray, rng: np.random.Generator, operations: int, magnitude: float, std: float
) -> np.ndarray:
    """`operations` at random, the identity among them (arXiv 1909.13719, section 3.1).

    Args:
      pixels: uint8 [h, w, 3].
      rng: that all is drawn from.
      operations: how many, one after the other.
      magnitude: from 0 to 10, at which the ranges end; more goes beyond them, as far as 20.
      std: of the normal distribution around it that each operation's own is drawn from.

    Returns:
      uint8 [h, w, 3].
    """
    steps = []
    for _ in range(operations):
        index = int(rng.integers(len(RAND_AUGMENT) + 1))
        level = float(np.clip(rng.normal(magnitude, std) if std else magnitude, 0, 20))
        if index < len(RAND_AUGMENT):
            steps.append((RAND_AUGMENT[index], level))
    return _apply(pixels, rng, steps)


def _apply(
    pixels: np.ndarray, rng: np.random.Generator, steps: list[tuple[str, float]]
) -> np.ndarray:
    if not steps:
        return pixels
    from PIL import Image

    image: Any = Image.fromarray(np.ascontiguousarray(pixels))
    for name, magnitude in steps:
        entry = OPERATIONS[name]
        strength = entry.strength(magnitude)
        if entry.signed and rng.random() < 0.5:
            strength = -strength
        image = entry.apply(image, strength)
    return np.asarray(image)
