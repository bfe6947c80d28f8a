"""Operations of augmentation policies on Pillow images.

Each function takes an RGB image and a strength, and is equivalent to the operation of the same name
in timm and torchvision. Geometric operations fill empty pixels with gray (128, 128, 128), as in
AutoAugment's code.
"""

from typing import Any

_GRAY = (128, 128, 128)
_CUTOUT_COLOR = (125, 122, 113)  # approximately ImageNet's mean


def _resampling(name: str) -> Any:
    from PIL import Image

    return Image.Resampling[name.upper()]


def _affine(image: Any, matrix: tuple[float, ...], resample: str) -> Any:
    """Returns an image whose pixel (x, y) is pixel (ax + by + c, dx + ey + f) of `image`."""
    from PIL import Image

    method = Image.Transform.AFFINE
    return image.transform(image.size, method, matrix, _resampling(resample), fillcolor=_GRAY)


def shear_x(image: Any, strength: float, resample: str) -> Any:
    """Moves each row to the left by `strength` times its distance from the top."""
    return _affine(image, (1, strength, 0, 0, 1, 0), resample)


def shear_y(image: Any, strength: float, resample: str) -> Any:
    """Moves each column up by `strength` times its distance from the left."""
    return _affine(image, (1, 0, 0, strength, 1, 0), resample)


def translate_x(image: Any, strength: float, resample: str) -> Any:
    """Moves the image left by a fraction of its width; "nearest" moves it by whole pixels."""
    return _affine(image, (1, 0, _offset(strength, image.width, resample), 0, 1, 0), resample)


def translate_y(image: Any, strength: float, resample: str) -> Any:
    """Moves the image up by a fraction of its height; "nearest" moves it by whole pixels."""
    return _affine(image, (1, 0, 0, 0, 1, _offset(strength, image.height, resample)), resample)


def _offset(fraction: float, size: int, resample: str) -> float:
    # Rounded down, as in torchvision.
    return int(fraction * size) if resample == "nearest" else fraction * size


def rotate(image: Any, strength: float, resample: str) -> Any:
    """Rotates the image counterclockwise around its center by `strength` degrees."""
    return image.rotate(strength, resample=_resampling(resample), fillcolor=_GRAY)


def image_ops(name: str, image: Any, strength: float) -> Any:
    """Applies Pillow's "autocontrast", "equalize" or "invert"; `strength` is ignored."""
    from PIL import ImageOps

    return getattr(ImageOps, name)(image)


def solarize(image: Any, strength: float) -> Any:
    """Inverts values greater than or equal to `strength`."""
    inverted = [v if v < strength else 255 - v for v in range(256)]
    return image.point(inverted * 3)


def solarize_add(image: Any, strength: float) -> Any:
    """Adds `strength` to values below 128, and clips the sum at 255."""
    added = [min(255, v + int(strength)) if v < 128 else v for v in range(256)]
    return image.point(added * 3)


def posterize(image: Any, strength: float) -> Any:
    """Keeps the `strength` highest bits of each channel; unlike in Pillow, 0 gives black."""
    mask = 256 - 2 ** (8 - min(8, int(strength)))
    return image.point([v & mask for v in range(256)] * 3)


def cutout(image: Any, strength: float, across: float, down: float) -> Any:
    """Fills a square of side `strength` with a fixed color (arXiv 1708.04552).

    Its center is at the fractions `across` of the width and `down` of the height.
    """
    size = int(strength) // 2
    x, y = int(across * image.width), int(down * image.height)
    right, bottom = min(image.width, x + size), min(image.height, y + size)
    image = image.copy()
    image.paste(_CUTOUT_COLOR, (max(0, x - size), max(0, y - size), right, bottom))
    return image


def enhance(name: str, image: Any, strength: float) -> Any:
    """Scales "color", "contrast", "brightness" or "sharpness" by `strength`.

    At strength 1, the image is unchanged. At strength 0, it becomes grayscale, uniform (mean gray),
    black or blurred, respectively.
    """
    from PIL import ImageEnhance

    return getattr(ImageEnhance, name.capitalize())(image).enhance(strength)
