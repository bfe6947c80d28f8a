"""Crops, flips, resizing and color modes."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from repvgg_jax.data.augment.pad_crop import pad_crop_flip
from repvgg_jax.data.augment.rectangles import random_box
from repvgg_jax.data.augment.transforms import resize_and_crop, resized_crop, train_image
from repvgg_jax.data.decode.image import from_array, open_image
from repvgg_jax.data.imagenet import IMAGENET_MEAN, IMAGENET_STD
from repvgg_jax.data.images import normalize
from repvgg_jax.data.sampler import example_rng
from repvgg_jax.data.sources.load import load_source
from tests.support.batches import AUGMENTED, array_source
from tests.support.image_files import encoded, noise


@given(st.integers(20, 900), st.integers(20, 900), st.integers(0, 2**32))
@settings(max_examples=100)
def test_random_box_keeps_its_area_and_ratio(width, height, seed):
    left, top, right, bottom = random_box(np.random.default_rng(seed), width, height)
    w, h = right - left, bottom - top
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    # Sides are rounded to whole pixels, which changes them by up to half a pixel.
    assert (w - 0.5) / (h + 0.5) <= 4 / 3
    assert (w + 0.5) / (h - 0.5) >= 3 / 4
    if 3 / 4 <= width / height <= 4 / 3:  # the fallback has an allowed area too
        assert 0.08 * width * height <= (w + 0.5) * (h + 0.5)


def test_random_box_spreads_over_areas_and_ratios():
    boxes = [random_box(example_rng(0, i), 500, 500) for i in range(2000)]
    sides = np.array([(r - l, b - t) for l, t, r, b in boxes])  # noqa: E741
    share, ratio = sides.prod(1) / 500**2, sides[:, 0] / sides[:, 1]
    assert share.min() < 0.1
    assert share.max() > 0.95
    assert abs(np.log(ratio).mean()) < 0.02
    # Large areas fit less often, so the mean is slightly below the middle of (0.08, 1).
    assert 0.45 < share.mean() < 0.54


@pytest.mark.parametrize("height", [20, 400])
def test_a_box_that_never_fits_falls_back_to_the_center(height):
    box = random_box(example_rng(0, 0), 420 - height, height, ratio=(0.9, 1.1))
    assert box[0] + box[2] == pytest.approx(420 - height, abs=1)
    assert box[1] + box[3] == pytest.approx(height, abs=1)


def test_resized_crop_is_the_crop_resized():
    pixels = noise(0, 50, 40)
    crop = resized_crop(from_array(pixels), (5, 10, 35, 40), 30)
    np.testing.assert_array_equal(crop, pixels[10:40, 5:35])


@pytest.mark.parametrize(
    ("grain", "box"),
    [(100, (101, 53, 1101, 953)), (10, (101, 53, 251, 203))],
    ids=["most of it", "a detail"],
)
def test_a_jpeg_decoded_at_reduced_size_gives_nearly_the_same_crop(grain, box):
    smooth = Image.fromarray(noise(1, 1000 // grain, 1200 // grain)).resize((1200, 1000))
    data = encoded(np.asarray(smooth), "JPEG")
    fast = resized_crop(open_image(data, "a"), box, 100)
    full = resized_crop(from_array(np.asarray(Image.open(io.BytesIO(data)))), box, 100)
    assert np.abs(fast.astype(int) - full).mean() < 1
    assert np.abs(fast.astype(int) - full).max() < 12


@pytest.mark.parametrize("transform", AUGMENTED, ids=lambda t: t.augmentation)
def test_half_of_the_images_are_mirrored(transform):
    ramp = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None] * 30, (8, 8, 3))
    images = np.stack([train_image(from_array(ramp), transform, 0, p) for p in range(600)])
    inner = images[:, 2:-2, 2:-2, 0].astype(int)
    falling = (inner[:, 0, -1] < inner[:, 0, 0]).mean()
    assert 0.44 < falling < 0.56


@given(st.integers(0, 4), st.integers(0, 2**64), st.booleans())
@settings(max_examples=30)
def test_pad_crop_flip_is_a_window_of_the_padded_image(padding, seed, flip):
    images = array_source(6, size=5).images
    positions = np.arange(6) + seed % 1000
    result = pad_crop_flip(images, padding, flip, seed, positions)
    assert result.dtype == np.uint8
    for image, crop, position in zip(images, result, positions, strict=True):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        windows = [
            window[:, ::step]
            for y in range(2 * padding + 1)
            for x in range(2 * padding + 1)
            for window in [padded[y : y + 5, x : x + 5]]
            for step in ((1, -1) if flip else (1,))
        ]
        assert any(np.array_equal(crop, window) for window in windows)
        alone = pad_crop_flip(image[None], padding, flip, seed, np.array([position]))
        np.testing.assert_array_equal(alone[0], crop)


def test_pad_crop_reaches_every_offset_evenly():
    dot = np.zeros((1, 9, 9, 3), np.uint8)
    dot[:, 4, 4] = 1
    count = 5000
    moved = pad_crop_flip(np.repeat(dot, count, 0), 2, False, 0, np.arange(count))
    spread = moved[..., 0].mean(0)[2:7, 2:7]
    assert spread.sum() == pytest.approx(1)
    assert spread.min() > 0.6 / 25
    assert spread.max() < 1.4 / 25


@pytest.mark.parametrize("shape", [(70, 100), (100, 70), (64, 64), (33, 150), (301, 299)])
def test_evaluation_is_resize_then_center_crop(shape):
    pixels = noise(2, *shape)
    image, (height, width) = Image.fromarray(pixels), shape
    size = (int(64 * width / height), 64) if height < width else (64, int(64 * height / width))
    expected = image.resize(size, Image.Resampling.BILINEAR)
    left, top = int(round((size[0] - 56) / 2)), int(round((size[1] - 56) / 2))  # noqa: RUF046
    expected = expected.crop((left, top, left + 56, top + 56))
    np.testing.assert_array_equal(resize_and_crop(pixels, 64, 56), np.asarray(expected))


def test_only_the_center_of_a_very_long_image_is_resized():
    row = np.zeros((1, 10_000_001, 3), np.uint8)  # resized as a whole, it would take gigabytes
    row[:, 4_999_999:5_000_002] = 200
    for pixels in (row, row.transpose(1, 0, 2)):
        assert (resize_and_crop(pixels, 256, 128) == 200).all()


def test_normalize():
    images = array_source(2).images
    expected = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    result = normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "LA", "RGBA", "1", "I;16"])
def test_every_color_mode_becomes_rgb(tmp_path, mode):
    gray = np.repeat(np.linspace(0, 255, 16).astype(np.uint8)[None], 16, 0)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(gray).convert("RGB").convert(mode)
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / f"x.{kind.lower()}")
    source = load_source("folder", "modes", os.fspath(tmp_path), "test")
    pixels = source[0].image
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert pixels[:, 0].mean() < 10
    assert pixels[:, -1].mean() > 245
    if mode not in ("1", "P"):
        np.testing.assert_allclose(pixels.astype(int), gray[..., None].repeat(3, 2), atol=6)
