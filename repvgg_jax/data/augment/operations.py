"""The operations that augmentation policies are made of, on Pillow images, by strength.

Each takes an RGB image and a strength, and is what timm and torchvision call by the same name.
What geometry leaves empty becomes the grey (128, 128, 128), as in AutoAugment's released code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_GREY = (128, 128, 128)
_CUT = (125, 122, 113)  # of cutout: about ImageNet's mean

Operation = Callable[[Any, float], Any]


def _resampling(name: str) -> Any:
    from PIL import Image

    return Image.Resampling[name.upper()]


def _affine(image: Any, matrix: tuple[float, ...], resample: str) -> Any:
    """The image whose pixel (x, y) is that of `image` at (ax + by + c, dx + ey + f)."""
    from PIL import Image

    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=_resampling(resample),
        fillcolor=_GREY,
    )


def shear_x(image: Any, strength: float, resample: str) -> Any:
    """Each row moves to the left by `strength` of its distance from the top."""
    return _affine(image, (1, strength, 0, 0, 1, 0), resample)


def shear_y(image: Any, strength: float, resample: str) -> Any:
    """Each column moves up by `strength` of its distance from the left."""
    return _affine(image, (1, 0, 0, strength, 1, 0), resample)


def translate_x(image: Any, strength: float, resample: str) -> Any:
    """To the left by a share of the width, of whole pixels where `resample` is "nearest"."""
    return _affine(image, (1, 0, _moved(strength, image.width, resample), 0, 1, 0), resample)


def translate_y(image: Any, strength: float, resample: str) -> Any:
    """Up by a share of the height, of whole pixels where `resample` is "nearest"."""
    return _affine(image, (1, 0, 0, 0, 1, _moved(strength, image.height, resample)), resample)


def _moved(share: float, size: int, resample: str) -> float:
    # Halves of a pixel would go either way; torchvision cuts them off.
    return int(share * size) if resample == "nearest" else share * size


def rotate(image: Any, strength: float, resample: str) -> Any:
    """About the centre, by degrees against the clock."""
    return image.rotate(strength, resample=_resampling(resample), fillcolor=_GREY)


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


def solarize_add(image: Any, strength: float) -> Any:
    """Values below 128 grow by `strength`, to 255 at most."""
    added = [min(255, value + int(strength)) if value < 128 else value for value in range(256)]
    return image.point(added * 3)


def posterize(image: Any, strength: float) -> Any:
    """The `strength` highest bits of each channel are kept; black, which Pillow refuses, at 0."""
    mask = 256 - 2 ** (8 - min(8, int(strength)))
    return image.point([value & mask for value in range(256)] * 3)


def cutout(image: Any, strength: float, across: float, down: float) -> Any:
    """A square of side `strength` becomes one colour, at shares of width and height.

    Around a pixel of the image, so that less than all of it may lie within (arXiv 1708.04552).
    """
    size, (x, y) = int(strength) // 2, (int(across * image.width), int(down * image.height))
    box = (
        max(0, x - size),
        max(0, y - size),
        min(image.width, x + size),
        min(image.height, y + size),
    )
    image = image.copy()
    image.paste(_CUT, box)
    return image


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
