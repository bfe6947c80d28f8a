"""Transforms of uint8 images to uint8 images, for training and evaluation.

| augmentation   | training                               | evaluation                            |
|----------------|----------------------------------------|---------------------------------------|
| "resized_crop" | random resized crop, flip              | shorter side to `resize`, center crop |
| "pad_crop"     | `fit`, zero padding, random crop, flip | `fit`                                 |
| "none"         | `fit`                                  | `fit`                                 |

In training, these are optionally followed by a policy (`augment/policies.py`) and random erasing.
`fit` resizes the shorter side to the size of the net's input and crops the center. Pixels are
normalized on the device (`data/images.py`).
"""

import dataclasses

import numpy as np

from repvgg_jax.data.augment.pad_crop import pad_crop_flip
from repvgg_jax.data.augment.policies import POLICIES, auto_augment, rand_augment, raug15
from repvgg_jax.data.augment.rectangles import random_box, random_erasing
from repvgg_jax.data.decode.image import LazyImage
from repvgg_jax.data.decode.resize import resize
from repvgg_jax.data.sampler import ERASING, POLICY, example_rng
from repvgg_jax.errors import UsageError

AUGMENTATIONS = ("resized_crop", "pad_crop", "none")


@dataclasses.dataclass(frozen=True)
class Transform:
    """The settings of image transforms.

    Example:
      >>> transform = Transform("pad_crop", image_size=32, policy="randaugment", erasing=0.25)

    Attributes:
      augmentation: "resized_crop", "pad_crop" or "none".
      image_size: side of the net's square input in training, in pixels.
      resize: shorter side before the center crop in evaluation; used by "resized_crop" only.
      padding: zero padding on each side before the random crop; used by "pad_crop" only.
      flip: whether to flip training images horizontally with probability 1/2.
      eval_image_size: side of the net's input in evaluation; `image_size` by default.
      policy: one of `policies.POLICIES`.
      policy_operations: number of operations of "randaugment".
      policy_magnitude: mean magnitude of "randaugment".
      policy_std: standard deviation of the magnitude of "randaugment".
      erasing: probability of random erasing.

    Raises:
      UsageError: if a value is unknown, or a size is too small.
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
        """Side of the net's input in evaluation, in pixels."""
        return self.eval_image_size or self.image_size

    @property
    def changes_pixels(self) -> bool:
        """True if training applies a policy or random erasing."""
        return self.policy != "none" or self.erasing > 0

    def __post_init__(self) -> None:
        if self.augmentation not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise UsageError(f"data.augmentation={self.augmentation!r}: choose from {known}")
        if self.image_size < 1 or self.padding < 0:
            raise UsageError(
                f"data.image_size={self.image_size} must be positive, and "
                f"data.padding={self.padding} must not be negative"
            )
        if self.augmentation == "resized_crop" and self.resize < self.eval_size:
            raise UsageError(
                f"data.resize={self.resize} is less than the {self.eval_size} pixels of evaluation "
                f"images; set data.resize to {self.eval_size} or more, such as 256 for 224"
            )
        if self.policy not in POLICIES:
            raise UsageError(f"data.policy={self.policy!r}: choose from {', '.join(POLICIES)}")


def train_image(image: LazyImage, transform: Transform, seed: int, position: int) -> np.ndarray:
    """Returns the transformed image at `position` of the stream, uint8 [image_size, image_size, 3].

    Raises:
      CorruptImageError: if the image cannot be decoded.
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
            batch = pad_crop_flip(pixels[None], transform.padding, transform.flip, seed, positions)
            pixels = batch[0]
    return augment_pixels(pixels, transform, seed, position)


def augment_pixels(
    pixels: np.ndarray, transform: Transform, seed: int, position: int
) -> np.ndarray:
    """Applies the transform's policy and then random erasing to uint8 [height, width, 3]."""
    if transform.policy != "none":
        rng = example_rng(seed, position, POLICY)
        if transform.policy == "randaugment":
            magnitude, std = transform.policy_magnitude, transform.policy_std
            pixels = rand_augment(pixels, rng, transform.policy_operations, magnitude, std)
        elif transform.policy == "raug15":
            pixels = raug15(pixels, rng)
        else:
            pixels = auto_augment(pixels, rng, transform.policy)
    if transform.erasing > 0:
        pixels = random_erasing(pixels, example_rng(seed, position, ERASING), transform.erasing)
    return pixels


# In evaluation, the longer side is cut to this multiple of the shorter one before the resize, since
# only the central square is kept, and a row of 65,535 pixels would be resized to gigabytes.
_LONGEST = 64


def eval_image(image: LazyImage, transform: Transform) -> np.ndarray:
    """Returns the image transformed for evaluation, uint8 [eval_size, eval_size, 3].

    Raises:
      CorruptImageError: if the image cannot be decoded.
    """
    if transform.augmentation == "resized_crop":
        return resize_and_crop(image.rgb(), transform.resize, transform.eval_size)
    return fit(image, transform.eval_size)


def resized_crop(image: LazyImage, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Returns the crop `box` of an image, resized bilinearly to uint8 [size, size, 3].

    Raises:
      CorruptImageError: if the image cannot be decoded.
    """
    return resize(*image.part(box, size), size)


def resize_and_crop(pixels: np.ndarray, resize: int, crop: int) -> np.ndarray:
    """Resizes the shorter side to `resize` and crops the center to uint8 [crop, crop, 3].

    It uses Pillow, so that the pixels in evaluation are bitwise equal to those of other frameworks.
    Training uses `decode.resize`, whose pixels may differ by a gray level.
    """
    from PIL import Image

    pixels = _without_far_ends(pixels)
    height, width, _ = pixels.shape
    short, long = min(width, height), max(width, height)
    if short != resize:
        other = int(resize * long / short)
        width, height = (resize, other) if width <= height else (other, resize)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    return pixels[top : top + crop, left : left + crop]


def _without_far_ends(pixels: np.ndarray) -> np.ndarray:
    """Returns the central part of an image that is much longer than it is wide or high."""
    most = _LONGEST * min(pixels.shape[:2])
    top, left = (max(side - most, 0) // 2 for side in pixels.shape[:2])
    return pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left]


def fit(image: LazyImage, size: int) -> np.ndarray:
    """Returns the image with its shorter side resized to `size` and the center cropped."""
    return resize_and_crop(image.rgb(), size, size)
