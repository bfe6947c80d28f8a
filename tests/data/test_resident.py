"""Batches gathered on the devices are those of the host, bit for bit."""

from __future__ import annotations

import dataclasses
import logging

import jax
import numpy as np
import pytest

from repvgg_jax.data import resident
from repvgg_jax.data.augment.transforms import Transform
from repvgg_jax.data.split import Split
from repvgg_jax.runtime.mesh import make_mesh
from tests.support.batches import PLAIN, array_source, take

BATCH, SEED, AUGMENTATION_SEED = 8, 3, 2**63 + 5


def split_of(transform, count=21, size=8):
    return Split(array_source(count, size), transform, BATCH, 0, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        (Transform("pad_crop", 8, padding=2), 8),
        (Transform("pad_crop", 8, padding=3, flip=False), 8),
        (Transform("pad_crop", 8, padding=1), 12),
        (PLAIN, 8),
    ],
)
def test_batches_over_several_epochs_are_those_of_the_host(transform, size):
    split, mesh = split_of(transform, size=size), make_mesh()
    data = resident.put_training_images(split, mesh)
    gather = jax.jit(resident.gather)
    expected = take(split.train_batches(SEED, AUGMENTATION_SEED), 6)
    for step, batch in enumerate(expected):
        positions = step * BATCH + np.arange(BATCH)
        draws = resident.draw(21, transform, SEED, AUGMENTATION_SEED, positions)
        got = gather(data, draws)
        assert got["image"].dtype == np.uint8
        np.testing.assert_array_equal(got["image"], batch["image"])
        np.testing.assert_array_equal(got["label"], batch["label"])


@pytest.mark.parametrize("transform", [PLAIN, Transform("resized_crop", 8, resize=10)])
def test_evaluation_batches_are_those_of_the_host(transform):
    split = split_of(transform)
    batches = resident.put_eval_batches(split, make_mesh())
    expected = list(split.eval_batches())
    for name, rows in batches.items():
        np.testing.assert_array_equal(rows, np.stack([batch[name] for batch in expected]))
        assert rows.sharding.shard_shape(rows.shape)[1] == BATCH // 4


def test_what_only_the_host_can_do_stays_there():
    for transform in (
        Transform("resized_crop", 8, resize=10),
        Transform("pad_crop", 8, policy="randaugment"),
        Transform("none", 8, erasing=0.25),
    ):
        assert resident.put_training_images(split_of(transform), make_mesh()) is None


def test_streamed_sources_stay_on_the_host(folder):
    split = dataclasses.replace(split_of(PLAIN), source=folder)
    assert resident.put_training_images(split, make_mesh()) is None
    assert resident.put_eval_batches(split, make_mesh()) is None


def test_a_set_that_does_not_fit_is_named(monkeypatch, caplog):
    monkeypatch.setattr(resident, "memory_bytes", lambda device: 4 * 21 * 8 * 8 * 3 - 1)
    with caplog.at_level(logging.INFO):
        assert resident.put_training_images(split_of(PLAIN), make_mesh()) is None
    assert resident.put_eval_batches(split_of(PLAIN), make_mesh()) is not None  # it is split
    line = "the training images take 0.0 GB, more than 25% of the 0.0 GB of a device; the host"
    assert line in caplog.text
