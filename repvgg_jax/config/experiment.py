"""An experiment: the resolved description of a run, which `build` makes from a config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh

from repvgg_jax.data.augment.transforms import Transform
from repvgg_jax.data.images import IMAGENET_MEAN, IMAGENET_STD
from repvgg_jax.data.pipeline import Batch, eval_batches, train_batches
from repvgg_jax.data.sources.base import Source


@dataclass(frozen=True)
class StepOptions:
    """The constants of a training step; fields are named as in the config.

    Attributes:
      custom_l2: weight decay of the kernels that `optim.sgd.custom_l2` covers; half of it times
        that penalty is added to the loss that is minimized, and not to the reported one.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    auxiliary_weight: float = 0.1
    custom_l2: float = 0.0
    ema_decay: float = 0.0
    accumulate: int = 1
    bn_group_size: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


@dataclass(frozen=True)
class Split:
    """A split of the data, and how its batches are made; fields are named as in the config."""

    source: Source
    transform: Transform
    batch_size: int
    workers: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def eval_batches(self) -> Iterator[Batch]:
        """Returns this process's rows of batches that hold every example of the split once."""
        return eval_batches(
            self.source,
            self.transform,
            self.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.workers,
        )

    def train_batches(
        self, seed: int, augmentation_seed: int, start_step: int = 0
    ) -> Iterator[Batch]:
        """Returns this process's rows of the endless training batches, from a step on."""
        return train_batches(
            self.source,
            self.transform,
            self.batch_size,
            seed,
            start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.workers,
            augmentation_seed=augmentation_seed,
        )


@dataclass(frozen=True)
class Experiment:
    """The resolved description of a run; fields that the config has as well are named as there.

    Attributes:
      config: the config in JSON form, for the workdir.
      optimizer: the optimizer, which includes the schedule.
      schedule: function from a step to its learning rate.
      data_seed: the field `data.seed`.
      augmentation_seed: the field `data.augmentation_seed`.
      fsdp_min_size: the field `mesh.min_size`.
      train_data: the training split; None if built without data.
      eval_data: the evaluation split; None if built without data.
    """

    config: dict[str, Any] = field(repr=False)
    net: nn.Module
    mesh: Mesh
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps: int
    step_options: StepOptions
    seed: int
    data_seed: int
    augmentation_seed: int
    fsdp_min_size: int
    train_data: Split | None
    eval_data: Split | None
    eval_every: int
    checkpoint_every: int
    log_every: int
    keep: int
    init_from: str | None
    repoptimizer_from: str | None
