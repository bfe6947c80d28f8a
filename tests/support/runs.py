"""Small training runs, and comparison of their results."""

from __future__ import annotations

import jax
import numpy as np

from configs import quickstart
from repvgg_jax.config.build import build
from repvgg_jax.runtime.signals import Stopping
from repvgg_jax.training import train as train_module

MEAN, STD = (0.3,) * 3, (0.4,) * 3


def tiny_config(**overrides):
    config = quickstart.get_config()
    config.model.update(depths=(1, 2), widths=(4, 8), strides=(2, 1))
    config.train.update(steps=4, batch_size=32, checkpoint_every=2, log_every=1, eval_every=100)
    config.optim.warmup_epochs = 0.0
    for name, value in overrides.items():
        group, field = name.split("_", 1)
        config[group][field] = value
    return config


def train(config, workdir, stopping=None):
    experiment = build(config)
    stopping = stopping or Stopping(config.train.deadline)
    return train_module.train(experiment, workdir, stopping)


def batch_of(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 3), np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "mask": np.ones(size, np.float32),
    }


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
