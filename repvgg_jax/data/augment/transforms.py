"""The paper's transforms: uint8 in, uint8 out; `normalize` turns them into floats on the device.

Training and evaluation each have one rule a name:

| augmentation   | training                              | evaluation                             |
|----------------|---------------------------------------|----------------------------------------|
| "resized_crop" | random resized crop, flip             | shorter side to `resize`, centre crop  |
| "pad_crop"     | `fit`, zero padding, random crop, flip| `fit`                                  |
| "none"         | `fit`                                 | `fit`                                  |

A policy (`data/policies.py`) and random erasing follow in training, each where asked for.

`fit` leaves images of `image_size` alone and brings others there: shorter side, then centre crop.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from repvgg_jax.data.augment.pad_crop import pad_crop_flip
from repvgg_jax.data.augment.policies import POLICIES, auto_augment, rand_augment, raug15
from repvgg_jax.data.augment.random_erasing import random_erasing
from repvgg_jax.data.decode.image import LazyImage
from repvgg_jax.data.decode.resize import resize
from repvgg_jax.data.sampler import ERASING, POLICY, example_rng
from repvgg_jax.errors import UsageError

AUGMENTATIONS = ("resized_crop", "pad_crop", "none")


@dataclasses.dataclass(frozen=True)
class Transform:
    """What happens to an image between decoding and the net.

    Attributes:
      augmentation: "resized_crop", "pad_crop" or "none".
      image_size: side of the square that the net gets, pixels.
      resize: shorter side before evaluation's centre crop; "resized_crop" only.
      padding: zeros on each side before the random crop; "pad_crop" only.
      flip: whether training mirrors half of the images.
      eval_image_size: of evaluation; `image_size` by default.
      policy: one of `policies.POLICIES`, "none" among them.
      policy_operations, policy_magnitude, policy_std: of "randaugment".
      erasing: probability of random erasing.

    Raises:
      UsageError: an unknown augmentation, or sizes that leave nothing to crop.
    """

    augmentation: str
    image_size: int
    resize: int = 256
    padding: int = 4
    flip: bool = True
    eval_image_size: int | None = None
    policy: str = "none"
    policy_operations: int = 2
    policy_magnitude: float = 9.0
    policy_std: float = 0.5
    erasing: float = 0.0

    @property
    def eval_size(self) -> int:
        """The side of evaluation's images."""
        return self.eval_image_size or self.image_size

    @property
    def changes_pixels(self) -> bool:
        """Whether training does more to an image than to move it."""
        return self.policy != "none" or self.erasing > 0

    def __post_init__(self):
        if self.augmentation not in AUGMENTATIONS:
            raise UsageError(
                f"unknown data.augmentation={self.augmentation!r}; "
                f"one of: {', '.join(AUGMENTATIONS)}"
            )
        if self.image_size < 1 or self.padding < 0:
            raise UsageError(
                f"image_size={self.image_size} must be positive and "
                f"padding={self.padding} not negative"
            )
        if self.augmentation == "resized_crop" and self.resize < self.eval_size:
            raise UsageError(
                f"resize={self.resize} is less than image_size={self.eval_size} of evaluation, "
                "which would crop beyond the image; the paper has 256 for 224"
            )
        if self.policy not in POLICIES:
            raise UsageError(f"unknown data.policy={self.policy!r}; one of: {', '.join(POLICIES)}")


def train_image(image: LazyImage, transform: Transform, seed: int, position: int) -> np.ndarray:
    """The training image at `position` of the stream: uint8 [image_size, image_size, 3].

    Raises:
      CorruptImageError: where it cannot be decoded.
    """
    if transform.augmentation == "resized_crop":
        rng = example_rng(seed, position)
        box = random_box(rng, *image.size)
        pixels = resized_crop(image, box, transform.image_size)
        if transform.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
    else:
        pixels = fit(image, transform.image_size)
        if transform.augmentation == "pad_crop":
            positions = np.array([position])
            moved = pad_crop_flip(pixels[None], transform.padding, transform.flip, seed, positions)
            pixels = moved[0]
    return augment_pixels(pixels, transform, seed, position)


def augment_pixels(
    pixels: np.ndarray, transform: Transform, seed: int, position: int
) -> np.ndarray:
    """The transform's policy, then random erasing: uint8 [h, w, 3] in and out."""
    if transform.policy != "none":
        pixels = _by_policy(pixels, transform, example_rng(seed, position, POLICY))
    if transform.erasing > 0:
        rng = example_rng(seed, position, ERASING)
        pixels = random_erasing(pixels, rng, transform.erasing)
    return pixels


def _by_policy(pixels: np.ndarray, transform: Transform, rng: np.random.Generator) -> np.ndarray:
    if transform.policy == "randaugment":
        operations, magnitude = transform.policy_operations, transform.policy_magnitude
        return rand_augment(pixels, rng, operations, magnitude, transform.policy_std)
    if transform.policy == "raug15":
        return raug15(pixels, rng)
    return auto_augment(pixels, rng, transform.policy)


def eval_image(image: LazyImage, transform: Transform) -> np.ndarray:
    """The evaluation image, uint8 [eval_size, eval_size, 3]; raises as `train_image`."""
    if transform.augmentation == "resized_crop":
        return resize_and_crop(image.rgb(), transform.resize, transform.eval_size)
    return fit(image, transform.eval_size)


def random_box(
    rng: np.random.Generator,
    width: int,
    height: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A random part of an image (Szegedy et al., arXiv 1409.4842, section 6).

    Its share of the area is uniform in `scale`, its width / height log-uniform in `ratio`. After
    ten tries that don't fit: the largest central part whose ratio is within bounds.

    Returns:
      (left, top, right, bottom) in pixels.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resized_crop(image: LazyImage, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """The part `box` of an image, resized (bilinear, antialiased): uint8 [size, size, 3].

    Raises:
      CorruptImageError: where it cannot be decoded.
    """
    return resize(*image.part(box, size), size)


def resize_and_crop(pixels: np.ndarray, resize: int, crop: int) -> np.ndarray:
    """Shorter side to `resize` (bilinear, antialiased), then the centre: uint8 [crop, crop, 3].

    By Pillow, bit for bit what evaluations elsewhere see; training's `resize` is within a level.
    """
    height, width, _ = pixels.shape
    short, long = min(width, height), max(width, height)
    if short != resize:
        other = int(resize * long / short)
        width, height = (resize, other) if width <= height else (other, resize)
        pixels = _pillow_resized(pixels, width, height)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    return pixels[top : top + crop, left : left + crop]


def fit(image: LazyImage, size: int) -> np.ndarray:
    """The image as it is where it has `size`, else shorter side and centre to `size`."""
    return resize_and_crop(image.rgb(), size, size)


def _pillow_resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
