"""The operations that augmentation policies are made of, on Pillow images, by strength.

Each takes an RGB image and a strength, and is what timm and torchvision call by the same name.
What geometry leaves empty becomes the grey (128, 128, 128), as in AutoAugment's released code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_GREY = (128, 128, 128)

Operation = Callable[[Any, float], Any]


def _affine(image: Any, matrix: tuple[float, ...]) -> Any:
    from PIL import Image

    transform, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
    return image.transform(image.size, transform, matrix, resample=nearest, fillcolor=_GREY)


def shear_x(image: Any, strength: float) -> Any:
    """Rows move by `strength` of their height."""
    return _affine(image, (1, strength, 0, 0, 1, 0))


def shear_y(image: Any, strength: float) -> Any:
    """Columns move by `strength` of their distance from the left."""
    return _affine(image, (1, 0, 0, strength, 1, 0))


def translate_x(image: Any, strength: float) -> Any:
    """To the side, by a share of the width."""
    return _affine(image, (1, 0, strength * image.width, 0, 1, 0))


def translate_y(image: Any, strength: float) -> Any:
    """Up or down, by a share of the height."""
    return _affine(image, (1, 0, 0, 0, 1, strength * image.height))


def rotate(image: Any, strength: float) -> Any:
    """About the centre, by degrees against the clock."""
    from PIL import Image

    return image.rotate(strength, resample=Image.Resampling.NEAREST, fillcolor=_GREY)


def auto_contrast(image: Any, strength: float) -> Any:
    """Each channel stretched to 0..255; of no strength."""
    from PIL import ImageOps

    return ImageOps.autocontrast(image)


def invert(image: Any, strength: float) -> Any:
    """255 - x; of no strength."""
    from PIL import ImageOps

    return ImageOps.invert(image)


def equalize(image: Any, strength: float) -> Any:
    """Each channel's histogram made flat; of no strength."""
    from PIL import ImageOps

    return ImageOps.equalize(image)


def solarize(image: Any, strength: float) -> Any:
    """Values from `strength` on are inverted."""
    from PIL import ImageOps

    return ImageOps.solarize(image, strength)


def posterize(image: Any, strength: float) -> Any:
    """The `strength` highest bits of each channel are kept."""
    from PIL import ImageOps

    bits = int(strength)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def _enhanced(image: Any, kind: str, strength: float) -> Any:
    from PIL import ImageEnhance

    return getattr(ImageEnhance, kind)(image).enhance(strength)


def color(image: Any, strength: float) -> Any:
    """From grey (0) over the image (1) to more colour."""
    return _enhanced(image, "Color", strength)


def contrast(image: Any, strength: float) -> Any:
    """From the mean grey (0) over the image (1) to more contrast."""
    return _enhanced(image, "Contrast", strength)


def brightness(image: Any, strength: float) -> Any:
    """From black (0) over the image (1) to more light."""
    return _enhanced(image, "Brightness", strength)


def sharpness(image: Any, strength: float) -> Any:
    """From a blurred image (0) over the image (1) to a sharpened one."""
    return _enhanced(image, "Sharpness", strength)
