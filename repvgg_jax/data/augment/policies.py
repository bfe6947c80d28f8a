"""Augmentation policies: AutoAugment, RandAugment and RepVGGplus's preset `raug15`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from repvgg_jax.data.augment.magnitudes import AUTO_AUGMENT, RAND_AUGMENT, RAUG15, PolicyOperation

# Sub-policies of two steps (operation, probability, magnitude from 0 to 9), from tables 9 and 7 of
# AutoAugment's appendix.
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
SUB_POLICIES = {"autoaugment": IMAGENET, "autoaugment_cifar10": CIFAR10}
POLICIES = ("none", *SUB_POLICIES, "randaugment", "raug15")


def auto_augment(pixels: np.ndarray, rng: np.random.Generator, policy: str) -> np.ndarray:
    """Applies a random one of AutoAugment's 25 sub-policies (arXiv 1805.09501, section 3).

    The policy is "autoaugment" (found on ImageNet) or "autoaugment_cifar10". `pixels` and the
    result are uint8 [height, width, 3].
    """
    table = SUB_POLICIES[policy]
    chosen = table[int(rng.integers(len(table)))]
    # Magnitudes 0 to 9 of the paper's tables are evenly spaced over the range.
    steps = [(name, 10 * level / 9) for name, chance, level in chosen if rng.random() < chance]
    return _apply(pixels, rng, AUTO_AUGMENT, steps)


def rand_augment(
    pixels: np.ndarray, rng: np.random.Generator, operations: int, magnitude: float, std: float
) -> np.ndarray:
    """Applies timm's `rand-m<magnitude>-n<operations>-mstd<std>-inc1` (based on arXiv 1909.13719).

    Each operation is drawn from fifteen and applied with probability 1/2. In the paper, the
    operations include the identity, are always applied, and have a fixed magnitude.

    Args:
      pixels: uint8 [height, width, 3], like the result.
      rng: random generator.
      operations: number of operations, drawn with replacement.
      magnitude: mean magnitude, from 0 to 10 (the maximum).
      std: standard deviation of each operation's magnitude, which is clipped to [0, 10].
    """
    names = tuple(RAND_AUGMENT)
    steps = []
    for _ in range(operations):
        name = names[int(rng.integers(len(names)))]
        if rng.random() < 0.5:
            steps.append((name, float(np.clip(rng.normal(magnitude, std), 0, 10))))
    return _apply(pixels, rng, RAND_AUGMENT, steps)


def raug15(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies the preset `raug15` of RepVGGplus (train/randaug.py of its repository).

    It applies two operations drawn from sixteen, which include Cutout, each at an integer magnitude
    drawn uniformly from 0 to 14. Magnitudes above 10 exceed the usual ranges. `pixels` and the
    result are uint8 [height, width, 3].
    """
    names = tuple(RAUG15)
    steps = [(names[int(rng.integers(len(names)))], float(rng.integers(15))) for _ in range(2)]
    return _apply(pixels, rng, RAUG15, steps)


def _apply(
    pixels: np.ndarray,
    rng: np.random.Generator,
    table: Mapping[str, PolicyOperation],
    steps: list[tuple[str, float]],
) -> np.ndarray:
    if not steps:
        return pixels
    from PIL import Image

    image: Any = Image.fromarray(np.ascontiguousarray(pixels))
    for name, magnitude in steps:
        entry = table[name]
        strength = entry.strength(magnitude)
        if entry.signed and rng.random() < 0.5:
            strength = -strength
        image = entry.apply(image, strength, *entry.draw(rng))
    return np.asarray(image)
