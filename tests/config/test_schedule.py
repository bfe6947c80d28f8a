"""Lengths in steps, and messages about those that do not fit together."""

import pytest

import repvgg_jax as rj
from configs import quickstart
from repvgg_jax.config.build import build
from repvgg_jax.config.schedule import (
    evaluation_interval,
    total_steps,
    warn_about_batches,
)


def config(**train):
    config = quickstart.get_config()
    config.train.update(eval_every=None, **train)
    return config


@pytest.mark.parametrize(
    ("train", "images", "message"),
    [
        (
            {"epochs": 1.0, "batch_size": 4096},
            37,
            r"1\.0 with 37 images .* step of train.batch_size=4096;",
        ),
        (
            {"steps": 20},
            1437,
            r"=1 takes 22 steps, but the run has 20; set --config.optim.warmup_epochs=0, or",
        ),
    ],
)
def test_a_schedule_without_steps_says_what_to_set(train, images, message):
    with pytest.raises(rj.UsageError, match=message):
        total_steps(config(**train), images)


def test_a_warm_up_of_all_epochs_is_found_before_the_data_are_opened():
    without_data = config(epochs=1.0)
    without_data.data.source = "nonsense"
    with pytest.raises(rj.UsageError, match=r"leaves nothing of train.epochs=1; set --config"):
        build(without_data)


@pytest.mark.parametrize(
    ("images", "batch", "interval", "warning"),
    [
        (1437, 64, 69, None),  # three epochs of 23 steps
        (50_000, 128, 391, None),
        (90, 64, 50, "an epoch is only 1.4 steps of train.batch_size=64, since there are 90"),
        (30, 64, 50, "train.batch_size=64 is larger than the training set of 30 images"),
    ],
)
def test_evaluations_are_whole_epochs_apart_and_small_sets_warn(
    images, batch, interval, warning, caplog
):
    small = config(batch_size=batch)
    assert evaluation_interval(small, images) == interval
    small.train.eval_every = 7
    assert evaluation_interval(small, images) == 7
    warn_about_batches(small, images)
    assert len(caplog.messages) == bool(warning)
    assert (warning or "") in caplog.text
