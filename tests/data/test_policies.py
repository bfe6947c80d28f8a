"""AutoAugment, RandAugment, `raug15` and random erasing: draws and their frequencies."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import repvgg_jax as rj
from repvgg_jax.data.augment.magnitudes import RAND_AUGMENT, RAUG15
from repvgg_jax.data.augment.policies import (
    POLICIES,
    SUB_POLICIES,
    auto_augment,
    rand_augment,
    raug15,
)
from repvgg_jax.data.augment.rectangles import random_erasing
from repvgg_jax.data.augment.transforms import Transform, augment_pixels, train_image
from repvgg_jax.data.decode.image import from_array
from repvgg_jax.data.pipeline import eval_batches, train_batches
from repvgg_jax.data.sampler import _SHUFFLE, CROP, ERASING, POLICY, example_rng
from repvgg_jax.data.sources.base import ArraySource
from tests.support.batches import array_source, assert_same, joined, take
from tests.support.images import photograph, recorded, rng_of

STRONGLESS = {"auto_contrast", "equalize", "invert"}


@pytest.mark.parametrize("name", sorted(RAND_AUGMENT.keys() - STRONGLESS))
def test_a_higher_magnitude_of_randaugment_changes_more(name):
    image = Image.fromarray(photograph())
    entry = RAND_AUGMENT[name]

    def change(magnitude, seed):
        sign = (1, -1)[seed % 2] if entry.signed else 1
        drawn = entry.draw(rng_of(seed))
        moved = entry.apply(image, sign * entry.strength(magnitude), *drawn)
        return np.abs(np.asarray(moved, int) - np.asarray(image, int)).mean()

    for seed in range(4):
        changes = [change(magnitude, seed) for magnitude in (0, 1, 4, 10)]
        if not name.startswith("translate"):  # a translated image may resemble the original again
            assert changes == sorted(changes)
        assert changes[0] < min(changes[2:])
        assert changes[0] == 0 or name == "posterize"  # starts at four bits


def test_a_square_is_cut_out_around_a_pixel_of_the_image():
    pixels = np.zeros((40, 60, 3), np.uint8)
    entry, areas, centers = RAUG15["cutout"], [], []
    for seed in range(300):
        rng = rng_of(seed)
        result = np.asarray(
            entry.apply(Image.fromarray(pixels), entry.strength(3), *entry.draw(rng))
        )
        rows, columns = np.nonzero((result == (125, 122, 113)).all(-1))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width == (result != 0).any(-1).sum()
        areas.append(len(rows))
        centers.append((rows.mean() / 40, columns.mean() / 60))
    assert max(areas) == 12 * 12
    assert min(areas) < 0.5 * 12 * 12  # near a corner
    np.testing.assert_allclose(np.mean(centers, 0), 0.5, atol=0.04)
    assert np.min(centers) < 0.15
    assert np.max(centers) > 0.85
    assert (pixels == 0).all()
    assert [entry.strength(m) for m in (0, 1, 10, 14)] == [2, 4, 40, 56]


@pytest.mark.parametrize("policy", list(SUB_POLICIES))
def test_auto_augment_keeps_shape_and_varies(policy):
    pixels = photograph()
    results = [auto_augment(pixels, rng_of(seed), policy) for seed in range(60)]
    assert {(result.shape, result.dtype) for result in results} == {(pixels.shape, pixels.dtype)}
    assert len({result.tobytes() for result in results}) > 15
    for seed in range(5):
        np.testing.assert_array_equal(results[seed], auto_augment(pixels, rng_of(seed), policy))


def assert_even(drawn, table, count):
    counts = [sum(name == other for other, _ in drawn) for name in table]
    assert len(drawn) == pytest.approx(count, rel=0.04)
    assert min(counts) > 0.8 * count / len(table)
    assert max(counts) < 1.2 * count / len(table)


def test_randaugment_applies_half_of_the_drawn_operations_evenly(monkeypatch):
    drawn, pixels, rng = recorded(monkeypatch, RAND_AUGMENT), photograph(size=4), rng_of(0)
    for _ in range(6000):
        rand_augment(pixels, rng, 2, 9.0, 0.0)
    assert_even(drawn, RAND_AUGMENT, 6000)
    assert {round(strength, 6) for name, strength in drawn if name == "rotate"} == {-27.0, 27.0}


def test_raug15_applies_both_at_magnitudes_from_0_to_14(monkeypatch):
    drawn, pixels, rng = recorded(monkeypatch, RAUG15), photograph(size=4), rng_of(0)
    for _ in range(4000):
        raug15(pixels, rng)
    assert_even(drawn, RAUG15, 8000)
    angles = [abs(strength) for name, strength in drawn if name == "rotate"]
    assert {round(angle, 6) for angle in angles} == {3.0 * m for m in range(15)}
    assert np.mean(angles) == pytest.approx(21, rel=0.1)
    assert {strength for name, strength in drawn if name == "posterize"} == {0, 1, 2, 3, 4, 5}


def test_random_erasing_keeps_its_bounds():
    pixels = np.full((60, 80, 3), 255, np.uint8)
    shares, ratios, count = [], [], 600
    for seed in range(count):
        erased = random_erasing(pixels, rng_of(seed), 0.5)
        changed = (erased != pixels).any(-1)
        if erased is pixels:
            continue
        rows, columns = np.nonzero(changed)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert changed.sum() > 0.9 * height * width  # a rectangle, but for noise that is white
        shares.append(height * width / changed.size)
        ratios.append(height / width)
    assert 0.43 < len(shares) / count < 0.57
    assert 0.015 < min(shares) < 0.06
    assert 0.25 < max(shares) < 0.36
    assert min(ratios) > 0.25
    assert max(ratios) < 4
    assert abs(np.log(ratios).mean()) < 0.15
    assert (pixels == 255).all()


@pytest.mark.parametrize("augmentation", ["resized_crop", "pad_crop", "none"])
@pytest.mark.parametrize("policy", POLICIES)
def test_batches_depend_on_seed_and_step_only(policy, augmentation):
    transform = Transform(augmentation, 8, resize=10, padding=2, policy=policy, erasing=0.5)
    source = array_source(11)
    batches = take(train_batches(source, transform, 4, 7), 6)
    assert_same(batches[3:], take(train_batches(source, transform, 4, 7, start_step=3), 3))
    parts = [
        take(train_batches(source, transform, 4, 7, process_index=i, process_count=2), 6)
        for i in range(2)
    ]
    assert_same(batches, joined(parts))
    plain = Transform(augmentation, 8, resize=10, padding=2)
    assert_same(eval_batches(source, transform, 4), eval_batches(source, plain, 4))


def test_a_policy_leaves_the_crop_where_it_was():
    """Pixels outside the erased rectangle equal those of the crop without erasing."""
    pixels = photograph(size=64)
    erasing = Transform("resized_crop", 32, erasing=1.0)
    for position in range(5):
        plain = train_image(from_array(pixels), Transform("resized_crop", 32), 3, position)
        erased = train_image(from_array(pixels), erasing, 3, position)
        kept = (plain == erased).all(-1)
        assert 0.6 < kept.mean() < 1


def test_purposes_draw_with_keys_of_their_own():
    purposes = (_SHUFFLE, CROP, POLICY, ERASING)
    draws = {
        example_rng(seed, position, purpose).random()
        for seed in (0, 1)
        for position in range(50)
        for purpose in purposes
    }
    assert len(draws) == 2 * 50 * len(purposes)
    pixels = photograph(size=16)
    policy, erasing = Transform("none", 16, policy="raug15"), Transform("none", 16, erasing=0.5)
    both = Transform("none", 16, policy="raug15", erasing=0.5)
    for position in range(30):
        augmented = raug15(pixels, example_rng(7, position, POLICY))
        np.testing.assert_array_equal(augment_pixels(pixels, policy, 7, position), augmented)
        erased = random_erasing(pixels, example_rng(7, position, ERASING), 0.5)
        np.testing.assert_array_equal(augment_pixels(pixels, erasing, 7, position), erased)
        after = random_erasing(augmented, example_rng(7, position, ERASING), 0.5)
        np.testing.assert_array_equal(augment_pixels(pixels, both, 7, position), after)


def test_a_policy_follows_the_position_and_the_augmentation_seed_only():
    images = np.repeat(photograph(size=8)[None], 11, 0)
    source = ArraySource("alike", tuple("0123456789a"), images, np.arange(11, dtype=np.int32))
    transform = Transform("none", 8, policy="randaugment", erasing=0.5)

    def drawn(seed, augmentation_seed):
        batches = train_batches(source, transform, 4, seed, augmentation_seed=augmentation_seed)
        taken = take(batches, 5)
        return [np.concatenate([batch[key] for batch in taken]) for key in ("image", "label")]

    (base, order), (same, other_order), (other, same_order) = drawn(1, 5), drawn(2, 5), drawn(1, 6)
    np.testing.assert_array_equal(base, same)
    np.testing.assert_array_equal(order, same_order)
    assert (order != other_order).any()
    assert (base != other).any()


def test_training_and_evaluation_sizes_are_apart():
    transform = Transform("resized_crop", 8, resize=14, eval_image_size=12)
    source = array_source(5, size=16)
    assert next(train_batches(source, transform, 4, 0))["image"].shape == (4, 8, 8, 3)
    assert {b["image"].shape for b in eval_batches(source, transform, 4)} == {(4, 12, 12, 3)}
    small = Transform("pad_crop", 8, eval_image_size=12)
    assert next(train_batches(source, small, 4, 0))["image"].shape == (4, 8, 8, 3)
    assert next(eval_batches(source, small, 4))["image"].shape == (4, 12, 12, 3)


def test_errors_name_the_bad_value():
    with pytest.raises(rj.UsageError, match=r"data.policy='auto': choose from none, autoaugment,"):
        Transform("none", 8, policy="auto")
    with pytest.raises(rj.UsageError, match=r"data.resize=10 is less than the 12 pixels of"):
        Transform("resized_crop", 8, resize=10, eval_image_size=12)
