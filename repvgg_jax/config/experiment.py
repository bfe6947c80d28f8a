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
from repvgg_jax.runtime.mesh import FSDP_MIN_SIZE


@dataclass(frozen=True)
class StepOptions:
    """The constants of a training step.

    Attributes:
      label_smoothing: share of the target that is spread evenly over all classes.
      mixup: alpha of mixup's Beta distribution; 0 for no mixup.
      cutmix: alpha of CutMix's Beta distribution; 0 for no CutMix.
      auxiliary_weight: weight of each auxiliary head's loss, for nets that have such heads.
      custom_l2: weight decay of the kernels that `optim.sgd.custom_l2` covers; half of it times
        that penalty is added to the loss that is minimized, and not to the reported one.
      ema_decay: decay of the average of variables, if the state keeps one.
      accumulate: number of microbatches that a batch is processed in, one after the other, to save
        memory. The update is that of the whole batch if each BatchNorm group lies in a microbatch.
      bn_group_size: the net's number of images in a BatchNorm group, which microbatches keep whole.
      mean: mean of each channel of [0, 1] RGB, for uint8 images.
      std: standard deviation of each channel of [0, 1] RGB, for uint8 images.
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
class TrainData:
    """The training split, and how its batches are made.

    Attributes:
      source: the images and labels.
      transform: the augmentation.
      batch_size: images in a batch over all processes.
      seed: seed of the order of the images.
      augmentation_seed: seed of crops, policies and mixing.
      workers: decoding threads in each process.
    """

    source: Source
    transform: Transform
    batch_size: int
    seed: int
    augmentation_seed: int
    workers: int

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Returns this process's rows of the endless batches, from a step on."""
        return train_batches(
            self.source,
            self.transform,
            self.batch_size,
            self.seed,
            start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.workers,
            augmentation_seed=self.augmentation_seed,
        )


@dataclass(frozen=True)
class EvalData:
    """The evaluation split, and how its batches are made.

    Attributes:
      source: the images and labels.
      transform: resizing and cropping.
      batch_size: images in a batch over all processes.
      workers: decoding threads in each process.
      mean: mean of each channel of [0, 1] RGB.
      std: standard deviation of each channel of [0, 1] RGB.
    """

    source: Source
    transform: Transform
    batch_size: int
    workers: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def batches(self) -> Iterator[Batch]:
        """Returns this process's rows of batches that hold every example of the split once."""
        return eval_batches(
            self.source,
            self.transform,
            self.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.workers,
        )

    def first_batches(self) -> Iterator[Batch]:
        """Returns the same batches whole, on every process."""
        return eval_batches(self.source, self.transform, self.batch_size, workers=0)


@dataclass(frozen=True)
class Experiment:
    """The resolved description of a run.

    Attributes:
      config: the config in JSON form, for the workdir and its hash.
      net: the net to train.
      mesh: the devices.
      optimizer: the optimizer, which includes the schedule.
      schedule: function from a step to its learning rate.
      steps: the number of training steps.
      step_options: constants of the training step.
      seed: seed of the initialization.
      fsdp_min_size: elements below which an array is replicated rather than split over `fsdp`.
      train_data: the training split; None if built without data.
      eval_data: the evaluation split; None if built without data.
      eval_every: steps between evaluations.
      checkpoint_every: steps between checkpoints.
      log_every: steps between rows of metrics.
      max_to_keep: number of latest checkpoints that are kept.
      deadline: seconds from the start of a process within which it saves and stops; None for no
        limit.
      init_from: workdir of a run to start from; None to start from fresh variables.
      repoptimizer_from: workdir of a csla run that RepOptimizer takes its scales from, or None.
    """

    config: dict[str, Any] = field(repr=False)
    net: nn.Module
    mesh: Mesh
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps: int
    step_options: StepOptions
    seed: int = 0
    fsdp_min_size: int = FSDP_MIN_SIZE
    train_data: TrainData | None = None
    eval_data: EvalData | None = None
    eval_every: int = 1000
    checkpoint_every: int = 1000
    log_every: int = 50
    max_to_keep: int = 2
    deadline: float | None = None
    init_from: str | None = None
    repoptimizer_from: str | None = None
