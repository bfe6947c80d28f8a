"""Training of small nets by the whole trainer, on images as many and as large as CIFAR-10's."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.benchmarks.gpu.rows import TRAINING, Figure, our_rows
from experiments.benchmarks.gpu.sizes import Sizes
from repvgg_jax.config.build import build, make_transform
from repvgg_jax.data.sources.base import ArraySource
from repvgg_jax.data.split import Split
from repvgg_jax.runtime.compilation import StartupTimer
from repvgg_jax.training.train import train


def measure(name: str, sizes: Sizes, file: TextIO) -> None:
    """Trains the net of `configs/<name>.py:full` on one device."""
    startup = StartupTimer()
    rows = our_rows(sizes.platform, file)
    config = sizes.make_config(name)
    experiment = replace(
        build(config, jax.devices()[:1], open_data=False),
        train_data=_split(config, sizes.train_images, config.train.batch_size),
        eval_data=_split(config, config.train.eval_batch_size, config.train.eval_batch_size),
        steps=sizes.train_steps,
        eval_every=sizes.train_steps,
    )
    with tempfile.TemporaryDirectory(prefix="repvgg_jax_bench_") as folder:
        result = train(experiment, Path(folder) / "run", startup=startup)
    rows.add(
        Figure(f"{TRAINING}, configs/{name}.py:full", config.train.batch_size),
        images_per_second=result.examples_per_second,
        waiting_for_data=result.waiting,
        first_step_seconds=startup.seconds,
        compile_seconds=startup.compile_seconds,
        steps=sizes.train_steps,
    )


def _split(config: ConfigDict, count: int, batch_size: int) -> Split:
    """Returns a split of random images in memory."""
    rng = np.random.default_rng(0)
    side, classes = config.data.image_size, config.model.num_classes
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    labels = rng.integers(0, classes, count).astype(np.int32)
    return Split(
        source=ArraySource("noise", tuple(map(str, range(classes))), images, labels),
        transform=make_transform(config),
        batch_size=batch_size,
        workers=config.data.workers,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
    )
