"""Mixup and CutMix."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.training.mixing import mix
from tests.support.variables import random_images


def targets_of(count, classes=8):
    return jnp.asarray(np.eye(classes, dtype=np.float32)[np.arange(count) % classes])


@pytest.mark.medium
def test_mixup_and_cutmix_mix_targets_as_they_mix_images():
    """Each image has a constant value of its own, so that the mean gives the true proportion."""
    values = jnp.arange(8.0)
    images = jnp.broadcast_to(values[:, None, None, None], (8, 16, 16, 3))
    for options in ({"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}):
        shares, mix_by = [], jax.jit(partial(mix, **options))
        for seed in range(20):
            mixed, targets = mix_by(jax.random.key(seed), images, targets_of(8))
            np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
            np.testing.assert_allclose(
                mixed.mean((1, 2, 3)), targets @ values, rtol=1e-4, atol=1e-4
            )
            shares.append(float(targets[0, 0]))
        assert max(shares) > 0.9
        assert min(shares) < 0.5
        assert len({round(share, 4) for share in shares}) > 5


@pytest.mark.medium
def test_mixup_blends_and_cutmix_pastes():
    images = jnp.asarray(random_images(4, 16, 16, 3))
    others = images[jnp.array([1, 0, 3, 2])]
    mixed, targets = mix(jax.random.key(1), images, targets_of(4), mixup=0.8)
    np.testing.assert_allclose(
        mixed, targets[0, 0] * images + targets[0, 1] * others, rtol=1e-4, atol=1e-5
    )
    mixed, targets = mix(jax.random.key(3), images, targets_of(4), cutmix=1.0)
    pasted = np.asarray((mixed == others).all(-1))
    assert ((mixed == images).all(-1) | pasted).all()
    assert pasted[0].mean() == pytest.approx(float(targets[0, 1]), abs=1e-5)
    rows, columns = np.nonzero(pasted[0])
    box = pasted[0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.all()


def test_nothing_to_mix():
    images, targets = jnp.ones((4, 2, 2, 3)), targets_of(4)
    assert mix(jax.random.key(0), images, targets) == (images, targets)


def test_an_odd_batch_is_refused_rather_than_left_unmixed():
    with pytest.raises(rj.UsageError, match="the batch size, 3, must be even"):
        mix(jax.random.key(0), jnp.ones((3, 2, 2, 3)), targets_of(3), mixup=0.2)


@pytest.mark.medium
def test_lambda_follows_its_distribution():
    images, targets = jnp.zeros((2, 2, 2, 3)), targets_of(2)
    keys = jax.random.split(jax.random.key(0), 400)
    share_of = jax.jit(jax.vmap(lambda key: mix(key, images, targets, mixup=0.2)[1][0, 0]))
    share = share_of(keys)
    drawn = jax.random.beta(jax.random.key(1), 0.2, 0.2, (4000,))
    for quantile in (0.2, 0.5, 0.8):
        below = float((share < jnp.quantile(drawn, quantile)).mean())
        assert abs(below - quantile) < 0.08
