"""The configs: each describes a run that can start, and its fields reach the run."""

import importlib
from pathlib import Path

import jax
import pytest

from configs import imagenet, imagenet_200, plus_l2pse
from repvgg_jax.config import config_mesh, make_net, make_optimizer, make_schedule, make_transform
from repvgg_jax.config_fields import check_values, plain

NAMES = sorted(path.stem for path in Path(imagenet.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_a_run_that_can_start(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    check_values(config)
    config_mesh(config)
    make_optimizer(config, make_schedule(config, 50_000))
    variables = jax.eval_shape(
        make_net(config).init, jax.random.key(0), jax.numpy.ones((1, 32, 32, 3))
    )
    assert "params" in variables
    transform, data = make_transform(config), plain(config)["data"]
    for field in set(data) & set(transform.__dataclass_fields__):
        assert getattr(transform, field) == data[field], field


def differing(config, other):
    config, other = plain(config), plain(other)
    return {
        f"{group}.{field}": value
        for group in ("model", "data", "train", "optim")
        for field, value in config[group].items()
        if value != other[group][field]
    }


def test_the_200_epoch_recipe_adds_what_the_paper_says():
    changes = differing(imagenet_200.get_config("repvgg_b3"), imagenet.get_config("repvgg_b3"))
    assert changes == {
        "data.policy": "autoaugment",
        "train.epochs": 200.0,
        "train.mixup": 0.2,
        "optim.warmup_epochs": 5.0,
        "optim.label_smoothing": 0.1,
    }


def test_l2pse_trains_at_256_and_is_tested_at_all_of_320():
    transform = make_transform(plus_l2pse.get_config())
    assert (transform.image_size, transform.eval_image_size, transform.resize) == (256, 320, 320)
