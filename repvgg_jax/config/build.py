"""Resolves a config into the values that the library takes: `build(config) -> Experiment`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repvgg_jax.config.classes import check_classes, describe_classes
from repvgg_jax.config.fields import check_values, to_json
from repvgg_jax.config.optimizer import check_repoptimizer, make_optimizer
from repvgg_jax.config.resolve import resolve
from repvgg_jax.config.schedule import (
    check_schedule,
    evaluation_interval,
    total_steps,
    warmup_steps,
    warn_about_batches,
)
from repvgg_jax.data.augment.transforms import Transform
from repvgg_jax.data.imagenet import IMAGENET_MEAN, IMAGENET_STD
from repvgg_jax.data.sources.base import Source
from repvgg_jax.data.sources.load import check_source, in_memory_if_small, open_source
from repvgg_jax.data.split import Split
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import create
from repvgg_jax.optim import sgd
from repvgg_jax.runtime.mesh import check_divides, make_mesh
from repvgg_jax.runtime.processes import warn_once

# Length of the schedule if the number of images is unknown.
_STEPS_WITHOUT_DATA = 600_000


@dataclass(frozen=True)
class StepOptions:
    """The constants of a training step, with the field names of the config.

    Attributes:
      custom_l2: weight decay of the kernels in `optim.sgd.custom_l2`. The loss that is minimized
        includes half of it times that penalty; the reported loss does not.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    auxiliary_weight: float = 0.1
    custom_l2: float = 0.0
    ema_decay: float = 0.0
    ema_warmup: bool = False  # as in configs without the field, which are of earlier runs
    accumulate: int = 1
    bn_group_size: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


@dataclass(frozen=True)
class Experiment:
    """A run, resolved from its config; common fields have the same names as in the config.

    Attributes:
      config: the config in JSON form, for the workdir.
      optimizer: the optimizer, which includes the schedule.
      schedule: function from a step to its learning rate.
      data_seed: `data.seed`, or `seed` if that is unset.
      augmentation_seed: `data.augmentation_seed`, or `seed` if that is unset.
      fsdp_min_size: `mesh.min_size`.
      train_data: the training split; None if built without data.
      eval_data: the evaluation split; None if built without data.
    """

    config: dict[str, Any]
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
    steps_per_call: int | None
    keep: int
    init_from: str | None
    init_head: str | None
    repoptimizer_from: str | None


def build(
    config: ConfigDict,
    devices: Sequence[jax.Device] | None = None,
    open_data: bool = True,
    run: Path | None = None,
) -> Experiment:
    """Returns the experiment described by a config, after all checks that need no training.

    Unset fields that class folders determine are filled in (`resolve`).

    Args:
      config: the config of a run.
      devices: the devices to run on; all of them by default.
      open_data: False to leave `train_data` and `eval_data` None; the length of the schedule is
        then a placeholder.
      run: workdir of a run whose classes the data must have.

    Raises:
      UsageError: if a value is out of bounds, values conflict, or the data cannot be used.

    Example:
      >>> from configs import quickstart
      >>> experiment = build(quickstart.get_config())
      >>> experiment.steps
      898
    """
    config = resolve(config, run, devices)
    check_config(config)
    mesh = _make_mesh(config, devices)
    net = make_net(config)
    check_repoptimizer(config, net)
    train_data, eval_data, train_size = None, None, 0
    if open_data:
        train_data = _make_train_data(config, run)
        eval_data = make_eval_data(config, mesh, run)
        train_size = len(train_data.source)
        warn_about_batches(config, train_size)
    steps, schedule = _make_schedule(config, train_size)
    seeds = (config.data.seed, config.data.augmentation_seed)
    data_seed, augmentation_seed = (config.seed if seed is None else seed for seed in seeds)
    return Experiment(
        config=to_json(config),
        net=net,
        mesh=mesh,
        optimizer=make_optimizer(config, net, schedule),
        schedule=schedule,
        steps=steps,
        step_options=_step_options(config),
        seed=config.seed,
        data_seed=data_seed,
        augmentation_seed=augmentation_seed,
        fsdp_min_size=config.mesh.min_size,
        train_data=train_data,
        eval_data=eval_data,
        eval_every=evaluation_interval(config, train_size),
        checkpoint_every=config.train.checkpoint_every,
        log_every=config.train.log_every,
        steps_per_call=config.train.steps_per_call,
        keep=config.train.keep,
        init_from=config.init_from,
        init_head=config.init_head,
        repoptimizer_from=config.optim.repoptimizer_from,
    )


def check_config(config: ConfigDict) -> None:
    """Raises UsageError for values and names that cannot be used, whatever the data and devices."""
    check_values(config)
    check_schedule(config)
    check_source(config.data.source)
    make_transform(config)
    make_net(config)


def _make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None) -> Mesh:
    """Returns the mesh of `config.mesh`, after checking that it divides the microbatches."""
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    if config.model.conv_algorithm == "onednn" and mesh.size > 1:
        raise UsageError(
            f"model.conv_algorithm=onednn supports a single device but the mesh has {mesh.size}; "
            "use model.conv_algorithm=auto"
        )
    check_divides("train.batch_size", config.train.batch_size, mesh, config.train.accumulate)
    check_groups(config)
    return mesh


def check_groups(config: ConfigDict) -> None:
    """Raises UsageError unless every microbatch consists of whole BatchNorm groups."""
    accumulate = config.train.accumulate
    group = config.model.bn_group_size or 1
    if group < 1 or config.train.batch_size % (accumulate * group):
        raise UsageError(
            f"model.bn_group_size={group}: must divide train.batch_size / train.accumulate = "
            f"{config.train.batch_size} / {accumulate}"
        )


def make_net(config: ConfigDict) -> nn.Module:
    """Returns the net described by `config.model`."""
    return create(**config.model.to_dict())


def make_source(config: ConfigDict, split: str, run: Path | None = None) -> Source:
    """Opens the split `train` or `test` of the data described by `config.data`.

    Raises:
      UsageError: if the data cannot be used, have other classes than those of the workdir `run`, or
        more than the net has outputs.
    """
    data = config.data
    classes = config.model.num_classes
    options = {"skip_corrupt": data.skip_corrupt, "holdout": data.holdout}
    if data.source == "digits" and split == "train":  # both splits have the same fields
        for field, own in (("name", "digits"), ("data_dir", None)):
            if data[field] not in (None, own):
                warn_once("data.%s=%s has no effect with data.source=digits", field, data[field])
    source = open_source(
        data.source, data.name, data.data_dir, split, num_classes=classes, **options
    )
    if run is not None:
        check_classes(run, source.class_names, source.name, to_train=split == "train")
    if source.num_classes > classes:
        raise UsageError(
            f"{source.name} has {describe_classes(source.class_names)}, but the net has {classes} "
            f"outputs; set model.num_classes={source.num_classes}"
        )
    if source.num_classes < classes and split == "train":  # both splits have the same classes
        warn_once(
            "%s has %d classes, but the net has %d outputs: class k, in the order of names, is "
            "output k, and other outputs have no class; set model.num_classes=%d unless this is "
            "intended",
            source.name,
            source.num_classes,
            classes,
            source.num_classes,
        )
    return source


def make_transform(config: ConfigDict) -> Transform:
    """Returns the transform described by `config.data`, which has fields of the same names."""
    return Transform(**{field.name: config.data[field.name] for field in fields(Transform)})


def _make_train_data(config: ConfigDict, run: Path | None) -> Split:
    """Opens the training split, which must not be empty."""
    data = _make_split(config, "train", config.train.batch_size, run)
    if not len(data.source):
        raise UsageError(f"{data.source.name} is empty; choose another data.name or data.data_dir")
    return data


def make_eval_data(config: ConfigDict, mesh: Mesh, run: Path | None = None) -> Split:
    """Opens the evaluation split, after checking that the mesh divides its batches.

    The split must have the classes of the workdir `run`, if one is given.
    """
    check_divides("train.eval_batch_size", config.train.eval_batch_size, mesh)
    return _make_split(config, "test", config.train.eval_batch_size, run)


def _make_split(config: ConfigDict, split: str, batch_size: int, run: Path | None) -> Split:
    source = make_source(config, split, run)
    if config.data.skip_corrupt:  # decoding drops corrupt images, which changes the size
        source = in_memory_if_small(source)
    return Split(
        source=source,
        transform=make_transform(config),
        batch_size=batch_size,
        workers=config.data.workers,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
    )


def _make_schedule(config: ConfigDict, train_size: int) -> tuple[int, optax.Schedule]:
    """Returns the number of steps and the schedule for `train_size` images, or 0 if unknown."""
    steps, warmup = _STEPS_WITHOUT_DATA, int(config.optim.warmup_epochs > 0)
    if train_size:
        steps, warmup = total_steps(config, train_size), warmup_steps(config, train_size)
    rate, batch_size = config.optim.learning_rate, config.train.batch_size
    return steps, sgd.cosine_schedule(rate, batch_size, steps, warmup)


def _step_options(config: ConfigDict) -> StepOptions:
    names = {field.name for field in fields(StepOptions)}
    sections = (config.model, config.data, config.train, config.optim)
    values = {name: section[name] for section in sections for name in names & set(section)}
    values["custom_l2"] = config.optim.weight_decay if config.optim.custom_l2 else 0.0
    return StepOptions(**values | {name: tuple(config.data[name]) for name in ("mean", "std")})
