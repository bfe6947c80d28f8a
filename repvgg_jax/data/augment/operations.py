"""Image operations of augmentation policies, on Pillow images.

Each takes an RGB image and a strength, and equals the operation of the same name in timm and
torchvision. Pixels that a geometric operation leaves empty become gray (128, 128, 128), as in
AutoAugment's released code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_GRAY = (128, 128, 128)
_CUTOUT_COLOR = (125, 122, 113)  # about ImageNet's mean

Operation = Callable[[Any, float], Any]


def _resampling(name: str) -> Any:
    from PIL import Image

    return Image.Resampling[name.upper()]


def _affine(image: Any, matrix: tuple[float, ...], resample: str) -> Any:
    """Returns the image whose pixel (x, y) is `image` at (ax + by + c, dx + ey + f)."""
    from PIL import Image

    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=_resampling(resample),
        fillcolor=_GRAY,
    )


def shear_x(image: Any, strength: float, resample: str) -> Any:
    """Moves each row to the left by `strength` times its distance from the top."""
    return _affine(image, (1, strength, 0, 0, 1, 0), resample)


def shear_y(image: Any, strength: float, resample: str) -> Any:
    """Moves each column up by `strength` times its distance from the left."""
    return _affine(image, (1, 0, 0, strength, 1, 0), resample)


def translate_x(image: Any, strength: float, resample: str) -> Any:
    """Moves the image left by a fraction of its width, in whole pixels for "nearest"."""
    return _affine(image, (1, 0, _offset(strength, image.width, resample), 0, 1, 0), resample)


def translate_y(image: Any, strength: float, resample: str) -> Any:
    """Moves the image up by a fraction of its height, in whole pixels for "nearest"."""
    return _affine(image, (1, 0, 0, 0, 1, _offset(strength, image.height, resample)), resample)


def _offset(fraction: float, size: int, resample: str) -> float:
    # Rounded down as in torchvision, since half pixels could be rounded either way.
    return int(fraction * size) if resample == "nearest" else fraction * size


def rotate(image: Any, strength: float, resample: str) -> Any:
    """Rotates the image around its center by degrees counterclockwise."""
    return image.rotate(strength, resample=_resampling(resample), fillcolor=_GRAY)


def auto_contrast(image: Any, strength: float) -> Any:
    """Stretches each channel to 0..255; `strength` is ignored."""
    from PIL import ImageOps

    return ImageOps.autocontrast(image)


def invert(image: Any, strength: float) -> Any:
    """Inverts the image, 255 - x; `strength` is ignored."""
    from PIL import ImageOps

    return ImageOps.invert(image)


def equalize(image: Any, strength: float) -> Any:
    """Flattens each channel's histogram; `strength` is ignored."""
    from PIL import ImageOps

    return ImageOps.equalize(image)


def solarize(image: Any, strength: float) -> Any:
    """Inverts values of at least `strength`."""
    from PIL import ImageOps

    return ImageOps.solarize(image, strength)


def solarize_add(image: Any, strength: float) -> Any:
    """Adds `strength` to values below 128, up to 255."""
    added = [min(255, value + int(strength)) if value < 128 else value for value in range(256)]
    return image.point(added * 3)


def posterize(image: Any, strength: float) -> Any:
    """Keeps the `strength` highest bits of each channel; 0, which Pillow rejects, gives black."""
    mask = 256 - 2 ** (8 - min(8, int(strength)))
    return image.point([value & mask for value in range(256)] * 3)


def cutout(image: Any, strength: float, across: float, down: float) -> Any:
    """Fills a square of side `strength` with one color (arXiv 1708.04552).

    The square is centered at fractions of width and height, so that it may reach over the border.
    """
    size = int(strength) // 2
    x, y = int(across * image.width), int(down * image.height)
    box = (
        max(0, x - size),
        max(0, y - size),
        min(image.width, x + size),
        min(image.height, y + size),
    )
    image = image.copy()
    image.paste(_CUTOUT_COLOR, box)
    return image


def _enhanced(image: Any, kind: str, strength: float) -> Any:
    from PIL import ImageEnhance

    return getattr(ImageEnhance, kind)(image).enhance(strength)


def color(image: Any, strength: float) -> Any:
    """Scales color: 0 gives gray, 1 the image."""
    return _enhanced(image, "Color", strength)


def contrast(image: Any, strength: float) -> Any:
    """Scales contrast: 0 gives the mean gray, 1 the image."""
    return _enhanced(image, "Contrast", strength)


def brightness(image: Any, strength: float) -> Any:
    """Scales brightness: 0 gives black, 1 the image."""
    return _enhanced(image, "Brightness", strength)


def sharpness(image: Any, strength: float) -> Any:
    """Scales sharpness: 0 gives a blurred image, 1 the image."""
    return _enhanced(image, "Sharpness", strength)
