"""What a magnitude means: each policy's operations, and how strong they are from 0 to 10.

| table        | is                                                       | geometry is         |
|--------------|----------------------------------------------------------|---------------------|
| RAND_AUGMENT | timm's `inc1`: a higher magnitude changes more           | bilinear or bicubic |
| RAUG15       | that of preset `raug15`, RepVGG's repository (82b28bb)   | bilinear or bicubic |
| AUTO_AUGMENT | torchvision's, over ten levels, and filled with grey     | nearest             |

RAUG15's posterize and solarize do less at a higher magnitude, its enhancements least at 5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_jax.data.augment import operations as ops

Draw = Callable[[np.random.Generator], tuple]


def _nothing(rng: np.random.Generator) -> tuple:
    return ()


def _smooth(rng: np.random.Generator) -> tuple:
    return (("bilinear", "bicubic")[int(rng.integers(2))],)


def _anywhere(rng: np.random.Generator) -> tuple:
    return (rng.random(), rng.random())


class PolicyOperation(NamedTuple):
    """An operation of a policy, applied as `apply(image, strength(magnitude), *draw(rng))`."""

    apply: Callable[..., Any]
    strength: Callable[[float], float]  # of a magnitude, 0 to 10
    signed: bool = False  # whether half of the images get the negative of it
    draw: Draw = _nothing  # what the operation takes besides


def _share(magnitude: float, of: float) -> float:
    return magnitude / 10 * of


def _whole(magnitude: float, of: float) -> int:
    return int(magnitude / 10 * of)


def _zero(magnitude: float) -> float:
    return 0.0


def _geometry(translation: float, draw: Draw) -> dict[str, PolicyOperation]:
    return {
        "shear_x": PolicyOperation(ops.shear_x, partial(_share, of=0.3), True, draw),
        "shear_y": PolicyOperation(ops.shear_y, partial(_share, of=0.3), True, draw),
        "translate_x": PolicyOperation(
            ops.translate_x, partial(_share, of=translation), True, draw
        ),
        "translate_y": PolicyOperation(
            ops.translate_y, partial(_share, of=translation), True, draw
        ),
        "rotate": PolicyOperation(ops.rotate, partial(_share, of=30), True, draw),
    }


def _around_one(enhance: ops.Operation, image: Any, strength: float) -> Any:
    # The image itself is at 1.
    return enhance(image, max(0.1, 1 + strength))


_ENHANCEMENTS = {
    "color": ops.color,
    "contrast": ops.contrast,
    "brightness": ops.brightness,
    "sharpness": ops.sharpness,
}
_BOTH_WAYS = {
    name: PolicyOperation(partial(_around_one, enhance), partial(_share, of=0.9), True)
    for name, enhance in _ENHANCEMENTS.items()
}
_FROM_WEAK_TO_STRONG = {
    name: PolicyOperation(enhance, lambda m: _share(m, 1.8) + 0.1)
    for name, enhance in _ENHANCEMENTS.items()
}
_OF_NO_STRENGTH = {
    "auto_contrast": PolicyOperation(ops.auto_contrast, _zero),
    "equalize": PolicyOperation(ops.equalize, _zero),
    "invert": PolicyOperation(ops.invert, _zero),
}
_SOLARIZE_ADD = PolicyOperation(ops.solarize_add, partial(_whole, of=110))

RAND_AUGMENT: dict[str, PolicyOperation] = {
    **_OF_NO_STRENGTH,
    **_geometry(0.45, _smooth),
    **_BOTH_WAYS,
    "posterize": PolicyOperation(ops.posterize, lambda m: 4 - _whole(m, 4)),
    "solarize": PolicyOperation(ops.solarize, lambda m: 256 - _whole(m, 256)),
    "solarize_add": _SOLARIZE_ADD,
}
RAUG15: dict[str, PolicyOperation] = {
    **_OF_NO_STRENGTH,
    **_geometry(0.45, _smooth),
    **_FROM_WEAK_TO_STRONG,
    "posterize": PolicyOperation(ops.posterize, partial(_whole, of=4)),
    "solarize": PolicyOperation(ops.solarize, partial(_whole, of=256)),
    "solarize_add": _SOLARIZE_ADD,
    "cutout": PolicyOperation(ops.cutout, lambda m: max(2, _whole(m, 40)), draw=_anywhere),
}
AUTO_AUGMENT: dict[str, PolicyOperation] = {
    **_OF_NO_STRENGTH,
    # The paper's 150 pixels of images of 331.
    **_geometry(150 / 331, lambda rng: ("nearest",)),
    **_BOTH_WAYS,
    "posterize": PolicyOperation(ops.posterize, lambda m: 8 - round(4 * m / 10)),
    "solarize": PolicyOperation(ops.solarize, lambda m: 255 - _share(m, 255)),
}
