"""AutoAugment, RandAugment and random erasing, beside timm's and torchvision's."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import repvgg_jax as rj
from repvgg_jax.data import Transform, eval_batches, train_batches
from repvgg_jax.data.decode import from_array
from repvgg_jax.data.policies import (
    AUTO_AUGMENT,
    CIFAR10,
    IMAGENET,
    OPERATIONS,
    POLICIES,
    RAND_AUGMENT,
    auto_augment,
    rand_augment,
)
from repvgg_jax.data.random_erasing import random_erasing
from repvgg_jax.data.transforms import train_image
from tests.test_data import array_source, assert_same, joined, take

NAMES = {
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "color",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "auto_contrast",
    "Equalize": "equalize",
    "Invert": "invert",
}
STRONGLESS = {"auto_contrast", "equalize", "invert"}


def photograph(seed=0, size=40):
    """Smooth shapes in colour, with some grain: every operation shows on it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 200, (6, 6, 3), np.uint8)).resize((size, size))
    return np.clip(np.asarray(coarse) + rng.integers(0, 30, (size, size, 3)), 0, 255).astype(
        np.uint8
    )


def rng_of(seed):
    return np.random.default_rng(seed)


def tree_of(package, path):
    """The syntax of a peer's file: its tables can be read where it can't be imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed: the other side is missing")
    return ast.parse((Path(spec.origin).parent / path).read_text())


@pytest.mark.parametrize(("member", "table"), [("IMAGENET", IMAGENET), ("CIFAR10", CIFAR10)])
def test_the_tables_are_torchvisions(member, table):
    tree = tree_of("torchvision", "transforms/autoaugment.py")
    (function,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name == "_get_policies"
        and "AutoAugmentPolicy" in ast.dump(node)
    )
    (found,) = (
        ast.literal_eval(branch.body[0].value)
        for branch in ast.walk(function)
        if isinstance(branch, ast.If) and f"attr='{member}'" in ast.dump(branch.test)
    )
    assert len(table) == len(found) == 25
    for ours, theirs in zip(table, found, strict=True):
        for (name, probability, level), (their_name, their_probability, their_level) in zip(
            ours, theirs, strict=True
        ):
            assert (name, probability) == (NAMES[their_name], their_probability)
            assert level == (their_level or 0) or name in STRONGLESS


@pytest.fixture(scope="module")
def timm_operations():
    """timm's functions, from its file alone: the package wants all of torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("timm is not installed: the other side is missing")
    path = Path(spec.origin).parent / "data/auto_augment.py"
    alone = importlib.util.spec_from_file_location("timm_auto_augment", path)
    module = importlib.util.module_from_spec(alone)
    alone.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(NAMES))
def test_operations_are_timms(name, timm_operations):
    ours, theirs = OPERATIONS[NAMES[name]], timm_operations.NAME_TO_OP
    kind = name + "Rel" if name.startswith("Translate") else name
    image = Image.fromarray(photograph())
    for strength in {ours.strength(7.0), -ours.strength(7.0) if ours.signed else 0}:
        passed = max(0.1, 1 + strength) if "_around_one" in repr(ours.apply) else strength
        arguments = () if NAMES[name] in STRONGLESS else (passed,)
        if not ours.signed and strength == 0 and arguments:
            continue
        expected = theirs[kind](
            image, *arguments, resample=Image.Resampling.NEAREST, fillcolor=(128, 128, 128)
        )
        np.testing.assert_array_equal(ours.apply(image, strength), expected)
        assert (np.asarray(expected) != np.asarray(image)).any()


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in STRONGLESS])
def test_strength_grows_from_nothing(name):
    image = Image.fromarray(photograph())
    entry = OPERATIONS[name]

    def change(magnitude):
        moved = np.asarray(entry.apply(image, entry.strength(magnitude)), int)
        return np.abs(moved - np.asarray(image, int)).mean()

    assert change(0) == 0
    assert 0 < change(4) < change(10)
    for magnitude in (15, 20):  # beyond the range, as recipes ask for
        entry.apply(image, entry.strength(magnitude))


@pytest.mark.parametrize("policy", list(AUTO_AUGMENT))
def test_auto_augment_keeps_shape_and_varies(policy):
    pixels = photograph()
    results = [auto_augment(pixels, rng_of(seed), policy) for seed in range(60)]
    assert {(result.shape, result.dtype) for result in results} == {(pixels.shape, pixels.dtype)}
    assert len({result.tobytes() for result in results}) > 15
    for seed in range(5):
        np.testing.assert_array_equal(results[seed], auto_augment(pixels, rng_of(seed), policy))


def test_rand_augment_draws_every_operation_evenly(monkeypatch):
    drawn = []
    for name in RAND_AUGMENT:
        entry = OPERATIONS[name]._replace(
            apply=lambda image, strength, name=name: drawn.append((name, strength)) or image
        )
        monkeypatch.setitem(OPERATIONS, name, entry)
    rng, pixels = rng_of(0), photograph(size=4)
    for _ in range(3000):
        rand_augment(pixels, rng, 2, 9.0, 0.0)
    counts = [sum(name == other for other, _ in drawn) for name in RAND_AUGMENT]
    assert len(drawn) == pytest.approx(6000 * 13 / 14, rel=0.02)  # the rest is the identity
    assert min(counts) > 0.85 * 6000 / 14
    assert max(counts) < 1.15 * 6000 / 14
    angles = {round(strength, 6) for name, strength in drawn if name == "rotate"}
    assert angles == {-27.0, 27.0}


def test_the_magnitudes_spread_is_what_was_asked_for(monkeypatch):
    angles = []
    entry = OPERATIONS["rotate"]
    monkeypatch.setitem(
        OPERATIONS, "rotate", entry._replace(apply=lambda i, s: angles.append(abs(s)) or i)
    )
    rng, pixels = rng_of(0), photograph(size=4)
    for _ in range(4000):
        rand_augment(pixels, rng, 2, 5.0, 0.5)
    assert np.mean(angles) == pytest.approx(15.0, rel=0.02)
    assert np.std(angles) == pytest.approx(1.5, rel=0.15)


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
    """Pixels tell where they come from; what a policy does not touch is the plain crop's."""
    pixels = photograph(size=64)
    erasing = Transform("resized_crop", 32, erasing=1.0)
    for position in range(5):
        plain = train_image(from_array(pixels), Transform("resized_crop", 32), 3, position)
        erased = train_image(from_array(pixels), erasing, 3, position)
        kept = (plain == erased).all(-1)
        assert 0.6 < kept.mean() < 1


def test_training_and_evaluation_sizes_are_apart():
    transform = Transform("resized_crop", 8, resize=14, eval_image_size=12)
    source = array_source(5, size=16)
    assert next(train_batches(source, transform, 4, 0))["image"].shape == (4, 8, 8, 3)
    assert {b["image"].shape for b in eval_batches(source, transform, 4)} == {(4, 12, 12, 3)}
    small = Transform("pad_crop", 8, eval_image_size=12)
    assert next(train_batches(source, small, 4, 0))["image"].shape == (4, 8, 8, 3)
    assert next(eval_batches(source, small, 4))["image"].shape == (4, 12, 12, 3)


def test_mistakes_are_named():
    with pytest.raises(rj.UsageError, match=r"unknown data.policy='auto'; one of: none, auto"):
        Transform("none", 8, policy="auto")
    with pytest.raises(rj.UsageError, match=r"resize=10 is less than image_size=12 of evaluation"):
        Transform("resized_crop", 8, resize=10, eval_image_size=12)
