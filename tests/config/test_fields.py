"""Bounds of the config fields, which must be set, and which identify a run."""

import pytest

import repvgg_jax as rj
from configs import default, quickstart
from repvgg_jax.config.build import build
from repvgg_jax.config.fields import (
    ALWAYS_SET,
    FIELDS,
    REQUIRED,
    check_values,
    config_hash,
    flat,
    to_json,
)


def changed(name, value, config=None):
    config = config or quickstart.get_config()
    section, _, field = name.rpartition(".")
    node = config[section] if section else config
    with node.unlocked(), node.ignore_type():
        node[field] = value
    return config


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_every_number_of_the_default_config_has_bounds():
    for name, value in flat(to_json(default.get_config())):
        numbers = value if isinstance(value, list) else [value]
        if numbers and all(map(is_number, numbers)):
            assert FIELDS[name].bounds, name


def test_every_field_with_a_default_is_known_as_one_that_must_be_set():
    filled = {name for name, value in flat(to_json(default.get_config())) if value is not None}
    assert filled == {*ALWAYS_SET, *REQUIRED, "data.name"}  # class folders need no name


@pytest.mark.parametrize("name", ALWAYS_SET)
def test_a_field_with_a_default_cannot_be_unset(name):
    with pytest.raises(rj.UsageError, match=f"^{name}=None: cannot be unset"):
        check_values(changed(name, None))


def test_a_tfds_data_set_needs_a_name():
    with pytest.raises(rj.UsageError, match=r"^data\.name=None: must be the name of a TFDS data"):
        check_values(changed("data.name", None, default.get_config()))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "data.mean",
            (123.675, 116.28, 103.53),
            "each must be at least 0 and at most 1, as",
        ),
        ("data.mean", (0.5, 0.5), "must have 3 numbers"),
        ("data.mean", (0.5,) * 4, "must have 3 numbers"),
        ("data.std", (58.395, 57.12, 57.375), "each must be above 0 and at most 1, as pixels are"),
        ("data.std", (0.2, 0.0, 0.2), "each must be above 0"),
        ("data.std", (0.2, float("nan"), 0.2), "each must be above 0"),
        ("data.std", ("a", "b", "c"), "each must be above 0"),
        ("model.widths", (8, 0, 8, 8, 8), "each must be an integer and at least 1"),
        ("model.copies", 0, "must be at least 1"),
        ("model.bn_group_size", 0, "must be at least 1"),
        ("optim.momentum", 1.0, "must be at least 0 and below 1"),
        ("optim.momentum", 9.0, "below 1"),
        ("optim.weight_decay", 5e4, "at most 1"),
        ("optim.label_smoothing", 1.0, "below 1"),
        ("optim.clip_norm", 0.0, "must be above 0, as a norm of 0 stops training"),
        ("optim.max_norm", -1.0, "must be above 0"),
        ("optim.ema_decay", 99.99, "below 1"),
        ("optim.bias_rate_factor", -1.0, "at least 0"),
        ("optim.warmup_epochs", float("inf"), "at most 1e+09"),
        ("train.epochs", 0.0, "above 0"),
        ("train.epochs", float("nan"), "above 0"),
        ("bench.batch_sizes", (0,), "each must be an integer and at least 1"),
    ],
)
def test_a_value_of_another_scale_is_one_line(name, value, message):
    with pytest.raises(rj.UsageError) as caught:
        check_values(changed(name, value))
    assert str(caught.value).startswith(f"{name}=")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *(f"model.{field}" for field in ("name", "block", "initializer", "remat", "dtype")),
        *(f"model.{field}" for field in ("branch_statistics", "conv_algorithm")),
        *(f"data.{field}" for field in ("source", "augmentation", "policy")),
    ],
)
def test_an_unknown_name_is_one_line_with_the_known_ones(name):
    with pytest.raises(rj.UsageError, match="nonsense") as caught:
        build(changed(name, "nonsense"))
    assert "\n" not in str(caught.value)


def test_the_warm_up_of_an_average_identifies_only_runs_that_have_one():
    plain, average = quickstart.get_config(), changed("optim.ema_decay", 0.9)
    assert config_hash(plain) == config_hash(changed("optim.ema_warmup", False))
    assert config_hash(average) != config_hash(plain)
    without = changed("optim.ema_warmup", False, changed("optim.ema_decay", 0.9))
    assert config_hash(average) != config_hash(without)
    before = to_json(without)
    del before["optim"]["ema_warmup"]  # a run from before the field existed
    assert config_hash(before) == config_hash(without)
