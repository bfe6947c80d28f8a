"""From a config to the values that the library takes, and the workdir that is its own."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import optax
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repvgg_jax.blocks.registry import module_type
from repvgg_jax.blocks.repvgg import BRANCHES, RepVGGBlock
from repvgg_jax.data.augment.transforms import Transform
from repvgg_jax.data.sources.base import Source
from repvgg_jax.data.sources.load import load_source
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import create
from repvgg_jax.optim import sgd
from repvgg_jax.runtime.mesh import check_divides, make_mesh


def config_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices as `config.mesh` has them, which must split the config's batches.

    Args:
      config: of the run.
      devices: all there are by default.

    Raises:
      UsageError: where sizes of mesh, batches, microbatches and BatchNorm groups don't go together.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    if config.model.conv_algorithm == "onednn" and mesh.size > 1:
        raise UsageError(
            f"model.conv_algorithm=onednn computes on one device, and the mesh has {mesh.size}; "
            "auto takes what each can"
        )
    check_divides("train.batch_size", config.train.batch_size, mesh, config.train.accumulate)
    check_divides("train.eval_batch_size", config.train.eval_batch_size, mesh)
    check_groups(config)
    return mesh


def check_groups(config: ConfigDict) -> None:
    """Raises UsageError unless microbatches are whole BatchNorm groups."""
    accumulate, group = config.train.accumulate, config.model.bn_group_size or 1
    if group < 1 or config.train.batch_size % (accumulate * group):
        raise UsageError(
            f"model.bn_group_size={group}: must divide train.batch_size / train.accumulate = "
            f"{config.train.batch_size} / {accumulate}"
        )


def make_net(config: ConfigDict) -> nn.Module:
    """The net that `config.model` describes."""
    return create(**config.model.to_dict())


def make_source(config: ConfigDict, split: str) -> Source:
    """The data that `config.data` describes, for `train` or `test`."""
    data, classes = config.data, config.model.num_classes
    source = load_source(
        data.source,
        data.name,
        data.data_dir,
        split,
        num_classes=classes,
        skip_corrupt=data.skip_corrupt,
    )
    if source.num_classes < classes:
        logging.warning(
            "%s has %d classes, the net %d: its labels are 0 to %d in the order of the names, not "
            "those of another set that a net was trained on",
            source.name,
            source.num_classes,
            classes,
            source.num_classes - 1,
        )
    return source


def make_transform(config: ConfigDict) -> Transform:
    """What happens to an image between its source and the device."""
    data = config.data
    return Transform(
        augmentation=data.augmentation,
        image_size=data.image_size,
        resize=data.resize,
        padding=data.padding,
        flip=data.flip,
        eval_image_size=data.eval_image_size,
        policy=data.policy,
        policy_operations=data.policy_operations,
        policy_magnitude=data.policy_magnitude,
        policy_std=data.policy_std,
        erasing=data.erasing,
    )


def data_seed(config: ConfigDict) -> int:
    """Of the order of the images."""
    return config.seed if config.data.seed is None else config.data.seed


def augmentation_seed(config: ConfigDict) -> int:
    """Of crops, policies and mixing."""
    given = config.data.augmentation_seed
    return config.seed if given is None else given


def total_steps(config: ConfigDict, train_size: int) -> int:
    """Steps of the run: `train.steps`, or as many as `train.epochs` of the data have."""
    if config.train.steps is not None:
        steps, field = config.train.steps, "train.steps"
    else:
        steps = round(config.train.epochs * train_size / config.train.batch_size)
        field = "train.epochs"
    if steps < 1:
        raise UsageError(f"{field}={getattr(config.train, field[6:])} gives no step to train")
    return steps


def make_schedule(config: ConfigDict, train_size: int) -> optax.Schedule:
    """Step -> learning rate."""
    steps, batch_size = total_steps(config, train_size), config.train.batch_size
    warmup = round(config.optim.warmup_epochs * train_size / batch_size)
    if warmup >= steps:
        raise UsageError(
            f"optim.warmup_epochs={config.optim.warmup_epochs} lasts {warmup} of {steps} steps; "
            "warm up for fewer"
        )
    return sgd.cosine_schedule(config.optim.learning_rate, batch_size, steps, warmup)


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer that `config.optim` describes."""
    net, values = make_net(config), config.optim
    if values.custom_l2:
        _check_custom_l2(net, config.model.branches)
    frozen = net.frozen_blocks()
    tx = sgd.sgd(
        schedule,
        momentum=values.momentum,
        nesterov=values.nesterov,
        weight_decay=values.weight_decay,
        decay_rules=values.decay_rules,
        rate_rules=(
            *((f"{name}(_se)?/.*", 0.0) for name in sorted(frozen)),
            *values.rate_rules,
            (r".*/bias", values.bias_rate_factor),
        ),
        custom_l2=bool(values.custom_l2),
    )
    chain = [tx]
    if values.clip_norm is not None:
        chain.insert(0, optax.clip_by_global_norm(values.clip_norm))
    if values.max_norm is not None:
        chain.append(sgd.max_norm(values.max_norm, sorted(frozen)))
    return optax.chain(*chain) if len(chain) > 1 else tx


def _check_custom_l2(net: nn.Module, branches: Sequence[str] | None) -> None:
    """Raises UsageError where the net has no blocks that optim.custom_l2 is of."""
    block = module_type(getattr(net, "block", nn.Module))
    if block is not RepVGGBlock or not {"kxk", "1x1"} <= set(branches or BRANCHES):
        raise UsageError(
            "optim.custom_l2 is for blocks of a kxk and a 1x1, each with its BatchNorm: "
            "model.block=repvgg, with both of these model.branches"
        )
