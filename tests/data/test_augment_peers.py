"""Operations and policies compared with timm's and torchvision's, byte for byte."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import default
from repvgg_jax.data.augment import magnitudes, policies
from repvgg_jax.data.augment.magnitudes import AUTO_AUGMENT, RAND_AUGMENT, RAUG15
from tests.support.images import photograph, recorded, rng_of

GRAY = (128, 128, 128)
TRANSLATIONS = {"translate_x": "TranslateXRel", "translate_y": "TranslateYRel"}
ENHANCEMENTS = ("color", "contrast", "brightness", "sharpness")
GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def camel(name):
    return "".join(word.capitalize() for word in name.split("_"))


def increasing(name):
    suffix = "Increasing" if name in ("posterize", "solarize", *ENHANCEMENTS) else ""
    return TRANSLATIONS.get(name, camel(name) + suffix)


def plain(name):
    return TRANSLATIONS.get(name, camel(name))


@pytest.fixture(scope="module")
def timm():
    """Imports timm's policies from their file only, since the package requires torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("timm is not installed: the other side is missing")
    path = Path(spec.origin).parent / "data/auto_augment.py"
    alone = importlib.util.spec_from_file_location("timm_auto_augment", path)
    module = importlib.util.module_from_spec(alone)
    alone.loader.exec_module(module)
    return module


def assert_same_operation(timm, monkeypatch, entry, their_name, magnitude, **hparams):
    """Compares with timm on a photograph, with both signs and interpolations."""
    image = Image.fromarray(photograph(size=56)).crop((0, 0, 56, 40))
    for sign in (1, -1) if entry.signed else (1,):
        monkeypatch.setattr(timm, "_randomly_negate", lambda value, sign=sign: sign * value)
        for resample in ("bilinear", "bicubic"):
            chosen = {"interpolation": Image.Resampling[resample.upper()], "img_mean": GRAY}
            operation = timm.AugmentOp(their_name, 1.0, magnitude, {**chosen, **hparams})
            drawn = (resample,) if entry.draw is magnitudes._bilinear_or_bicubic else ()
            result = np.asarray(entry.apply(image, sign * entry.strength(magnitude), *drawn))
            if "Posterize" in their_name and entry.strength(magnitude) == 0:
                assert not result.any()  # zero bits, which newer versions of Pillow reject
            else:
                np.testing.assert_array_equal(result, np.asarray(operation(image)), their_name)


@pytest.mark.parametrize("magnitude", [0, 1, 4, 7, 8.3, 9, 10])
def test_operations_of_randaugment_are_timms(magnitude, timm, monkeypatch):
    for name, entry in RAND_AUGMENT.items():
        assert_same_operation(timm, monkeypatch, entry, increasing(name), magnitude)


@pytest.mark.parametrize("magnitude", range(15))
def test_operations_of_raug15_are_timms_plain_ones_beyond_their_ranges_too(
    magnitude, timm, monkeypatch
):
    for name, entry in RAUG15.items():
        if name == "cutout" or (name == "solarize_add" and magnitude > 11):
            continue  # timm has no cutout, and adds 128 at most
        args = (timm, monkeypatch, entry, plain(name), magnitude)
        assert_same_operation(*args, magnitude_max=14)


def test_the_defaults_are_timms_rand_m9_n2_mstd05_inc1(timm):
    theirs = timm.rand_augment_transform("rand-m9-n2-mstd0.5-inc1", {})
    assert sorted(map(increasing, RAND_AUGMENT)) == sorted(each.name for each in theirs.ops)
    assert theirs.choice_weights is None
    ours = default.get_config().data
    assert ours.policy_operations == theirs.num_layers
    assert {(ours.policy_magnitude, ours.policy_std)} == {
        (each.magnitude, each.magnitude_std) for each in theirs.ops
    }
    assert theirs.ops[0].kwargs == {
        "fillcolor": GRAY,
        "resample": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
    }
    drawn = {magnitudes._bilinear_or_bicubic(rng_of(seed)) for seed in range(20)}
    assert drawn == {("bilinear",), ("bicubic",)}


@pytest.mark.parametrize(("operations", "magnitude", "std"), [(2, 9, 0.5), (3, 1, 2), (2, 10, 0)])
def test_randaugment_draws_as_timm_does(operations, magnitude, std, timm, monkeypatch):
    """Compares the number of operations per image, and the angles of rotations."""
    images, pixels, rng = 4000, photograph(size=4), rng_of(0)
    drawn = recorded(monkeypatch, RAND_AUGMENT)
    for _ in range(images):
        policies.rand_augment(pixels, rng, operations, float(magnitude), std)
    angles = np.sort([abs(strength) for name, strength in drawn if name == "rotate"])

    theirs, calls, turned = [], [], Image.fromarray(pixels)
    for name in timm.NAME_TO_OP:
        monkeypatch.setitem(timm.NAME_TO_OP, name, lambda image, *a, **k: calls.append(1) or image)
    monkeypatch.setitem(
        timm.NAME_TO_OP, "Rotate", lambda image, a, **k: calls.append(1) or theirs.append(abs(a))
    )
    monkeypatch.setattr(np.random, "choice", rng_of(1).choice)
    random.seed(0)
    transform = timm.rand_augment_transform(f"rand-m{magnitude}-n{operations}-mstd{std}-inc1", {})
    for _ in range(images):
        transform(turned)
    assert len(drawn) == pytest.approx(len(calls), rel=0.05)
    assert len(angles) == pytest.approx(len(theirs), rel=0.25)
    assert max(angles) <= 30 + 1e-9
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        expected = pytest.approx(np.quantile(theirs, share), abs=1.2 if std else 1e-9)
        assert np.quantile(angles, share) == expected


@pytest.mark.parametrize("policy", policies.SUB_POLICIES)
def test_the_tables_are_torchvisions(policy, torchvision):
    transforms = torchvision.transforms
    member = {"autoaugment": "IMAGENET", "autoaugment_cifar10": "CIFAR10"}[policy]
    found = transforms.AutoAugment(transforms.AutoAugmentPolicy[member]).policies
    ours = policies.SUB_POLICIES[policy]
    assert len(ours) == len(found) == 25
    for (name, chance, level), (their_name, their_chance, their_level) in zip(
        (step for pair in ours for step in pair),
        (step for pair in found for step in pair),
        strict=True,
    ):
        assert (camel(name), chance) == (their_name, their_chance)
        assert level == (their_level or 0)


@pytest.mark.parametrize("name", AUTO_AUGMENT)
def test_operations_of_autoaugment_are_torchvisions(name, torchvision):
    transforms, entry = torchvision.transforms, AUTO_AUGMENT[name]
    image = Image.fromarray(photograph(size=320)).crop((0, 0, 320, 290))
    spans = transforms.AutoAugment()._augmentation_space(10, (image.height, image.width))
    strengths, signed = spans[camel(name)]
    assert signed == entry.signed
    nearest = transforms.InterpolationMode.NEAREST
    for level in range(10) if strengths.ndim else (0,):
        for sign in (1, -1) if signed else (1,):
            theirs = sign * float(strengths[level] if strengths.ndim else 0.0)
            theirs = -theirs if "translate" in name else theirs  # to the right and down
            expected = transforms.autoaugment._apply_op(
                image, camel(name), theirs, interpolation=nearest, fill=list(GRAY)
            )
            drawn = entry.draw(rng_of(0))
            result = entry.apply(image, sign * entry.strength(10 * level / 9), *drawn)
            # torchvision's strengths are float32, which changes the rounding of ties.
            error = np.abs(np.asarray(result, int) - np.asarray(expected, int))
            assert error.max() <= (1 if name in ENHANCEMENTS else 0) or name == "rotate", level
            assert (error > 1).mean() < 1e-4, level


@pytest.mark.parametrize("name", [name for name in RAND_AUGMENT if name != "solarize_add"])
def test_torchvision_computes_the_same_without_pillow(name, torchvision):
    """Compares on tensors, and geometric operations away from the border, which is filled."""
    transforms, entry = torchvision.transforms, RAND_AUGMENT[name]
    import torch

    pixels = photograph(size=40)
    arguments = {
        "shear_x": (0.2, 0.2),
        "shear_y": (-0.2, -0.2),
        "translate_x": (9 / 40, -9),
        "translate_y": (-9 / 40, 9),
        "rotate": (25.0, 25.0),
        "posterize": (3, 3),
        "solarize": (100, 100),
        **dict.fromkeys(ENHANCEMENTS, (0.4, 0.4)),
    }
    ours, theirs = arguments.get(name, (0.0, 0.0))
    drawn = ("bilinear",) if name in GEOMETRY else ()
    result = np.asarray(entry.apply(Image.fromarray(pixels), ours, *drawn), int)
    expected = transforms.autoaugment._apply_op(
        torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        camel(name),
        theirs,
        interpolation=transforms.InterpolationMode.BILINEAR,
        fill=[128.0] * 3,
    )
    error = np.abs(result - expected.numpy().transpose(1, 2, 0).astype(int))
    if name in GEOMETRY:
        assert (np.abs(result - pixels) > 10).mean() > 0.1
        assert (error > 3).any(-1).mean() < 0.08
    else:
        assert error.max() <= 1
