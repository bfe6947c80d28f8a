"""Operations of each augmentation policy, and their strength at magnitudes from 0 to 10.

| table        | source                                                     | geometric resampling |
|--------------|------------------------------------------------------------|----------------------|
| RAND_AUGMENT | timm's `inc1`: strengths increase with the magnitude       | bilinear or bicubic  |
| RAUG15       | preset `raug15` of RepVGG's repository (82b28bb)           | bilinear or bicubic  |
| AUTO_AUGMENT | torchvision, with ten levels and a gray fill color         | nearest              |

In RAUG15, posterize and solarize are weaker at higher magnitudes, enhancements weakest at 5.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_jax.data.augment import operations as ops


def _bilinear_or_bicubic(rng: np.random.Generator) -> tuple:
    return (("bilinear", "bicubic")[int(rng.integers(2))],)


class PolicyOperation(NamedTuple):
    """An operation of a policy, applied as `apply(image, strength(magnitude), *draw(rng))`.

    Attributes:
      apply: function from `operations`.
      strength: function from a magnitude between 0 and 10 to the operation's strength.
      signed: whether the strength is negated with probability 1/2.
      draw: function that draws additional arguments of the operation.
    """

    apply: Callable[..., Any]
    strength: Callable[[float], float]
    signed: bool = False
    draw: Callable[[np.random.Generator], tuple] = lambda rng: ()


def _fraction(magnitude: float, of: float) -> float:
    return magnitude / 10 * of


def _integer(magnitude: float, of: float) -> int:
    return int(magnitude / 10 * of)


def _geometric(translation: float, draw: Callable[..., tuple]) -> dict[str, PolicyOperation]:
    limits = {
        "shear_x": (ops.shear_x, 0.3),
        "shear_y": (ops.shear_y, 0.3),
        "translate_x": (ops.translate_x, translation),
        "translate_y": (ops.translate_y, translation),
        "rotate": (ops.rotate, 30),
    }
    return {
        name: PolicyOperation(operation, partial(_fraction, of=limit), True, draw)
        for name, (operation, limit) in limits.items()
    }


def _enhance_around_one(name: str, image: Any, strength: float) -> Any:
    return ops.enhance(name, image, max(0.1, 1 + strength))  # at 1 the image is unchanged


_ENHANCEMENTS = ("color", "contrast", "brightness", "sharpness")
_SIGNED_ENHANCEMENTS = {
    name: PolicyOperation(partial(_enhance_around_one, name), partial(_fraction, of=0.9), True)
    for name in _ENHANCEMENTS
}
_INCREASING_ENHANCEMENTS = {
    name: PolicyOperation(partial(ops.enhance, name), lambda m: _fraction(m, 1.8) + 0.1)
    for name in _ENHANCEMENTS
}
_WITHOUT_STRENGTH = {
    "auto_contrast": PolicyOperation(partial(ops.image_ops, "autocontrast"), lambda m: 0.0),
    "equalize": PolicyOperation(partial(ops.image_ops, "equalize"), lambda m: 0.0),
    "invert": PolicyOperation(partial(ops.image_ops, "invert"), lambda m: 0.0),
}
_SOLARIZE_ADD = PolicyOperation(ops.solarize_add, partial(_integer, of=110))

RAND_AUGMENT: dict[str, PolicyOperation] = {
    **_WITHOUT_STRENGTH,
    **_geometric(0.45, _bilinear_or_bicubic),
    **_SIGNED_ENHANCEMENTS,
    "posterize": PolicyOperation(ops.posterize, lambda m: 4 - _integer(m, 4)),
    "solarize": PolicyOperation(ops.solarize, lambda m: 256 - _integer(m, 256)),
    "solarize_add": _SOLARIZE_ADD,
}
RAUG15: dict[str, PolicyOperation] = {
    **_WITHOUT_STRENGTH,
    **_geometric(0.45, _bilinear_or_bicubic),
    **_INCREASING_ENHANCEMENTS,
    "posterize": PolicyOperation(ops.posterize, partial(_integer, of=4)),
    "solarize": PolicyOperation(ops.solarize, partial(_integer, of=256)),
    "solarize_add": _SOLARIZE_ADD,
    "cutout": PolicyOperation(
        ops.cutout,
        lambda m: max(2, _integer(m, 40)),
        draw=lambda rng: (rng.random(), rng.random()),
    ),
}
AUTO_AUGMENT: dict[str, PolicyOperation] = {
    **_WITHOUT_STRENGTH,
    # The paper translates 331-pixel images by up to 150 pixels.
    **_geometric(150 / 331, lambda rng: ("nearest",)),
    **_SIGNED_ENHANCEMENTS,
    "posterize": PolicyOperation(ops.posterize, lambda m: 8 - round(4 * m / 10)),
    "solarize": PolicyOperation(ops.solarize, lambda m: 255 - _fraction(m, 255)),
}
