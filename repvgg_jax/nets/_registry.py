"""Registry of nets: `create("repvgg_b1", num_classes=10)`, `list_models("repvgg*")`."""

import dataclasses
import fnmatch
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from repvgg_jax.blocks.base import Block
from repvgg_jax.blocks.registry import BLOCKS, block_class
from repvgg_jax.errors import UsageError, check_known, described
from repvgg_jax.nets import (
    deep_plain,
    densenet,
    diracnet,
    efficientnet,
    googlenet,
    inception_resnet,
    mobilenet,
    mobileone,
    nasnet,
    regnet,
    repvgg,
    residual_reorg,
    resnet,
    shufflenet,
    vgg,
    xception,
)
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._spelling import spelling

_FAMILIES = deep_plain, densenet, diracnet, efficientnet, googlenet, inception_resnet, mobilenet
_FAMILIES += mobileone, nasnet, regnet, repvgg, residual_reorg, resnet, shufflenet, vgg, xception
_VARIANTS = [item for family in _FAMILIES for item in family.VARIANTS.items()]
NETS: dict[str, partial[Net] | type[Net]] = dict(sorted(_VARIANTS))

_BLOCK_FIELDS = {field.name for field in dataclasses.fields(Block)}  # set by the net's plan


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of all models that match a shell-style pattern.

    Examples:
      >>> list_models("repvgg_b1g*")
      ['repvgg_b1g2', 'repvgg_b1g4']
    """
    return fnmatch.filter(NETS, pattern)


def check_model(name: str) -> None:
    """Raises UsageError with the nearest models if `name` is not one of `list_models()`.

    Spellings of torchvision, timm and papers lead to the model here.
    """
    check_known("model", name, NETS, spelling)


def create(name: str, *, block: str | None = None, **overrides: Any) -> Net:
    """Returns the net with the given name, a Flax module without arrays.

    Args:
      name: name of the net, one of `list_models()`.
      block: name of the train-time block, one of `BLOCKS`; None for the default block of the model
        (`repvgg` for RepVGG).
      **overrides: fields of the net (`num_classes`, `widths`, `depths`, `strides`, `groups`,
        `dtype`, ...) or of its block (`branches`, ...); None for the default of the model.

    Raises:
      UsageError: if a name, block or override is unknown (the message suggests valid ones), or if
        the net cannot be built.

    Examples:
      >>> net = create("repvgg_a0", num_classes=10, branches=("kxk", "identity"))
      >>> net.num_classes, net.block, net.block_options
      (10, 'repvgg', (('branches', ('kxk', 'identity')),))
    """
    check_model(name)
    if not isinstance(block, str | None):
        raise UsageError(
            f"block is {described(block)}; it must be a name in BLOCKS ({', '.join(BLOCKS)}); "
            "register a new class there first"
        )
    net = NETS[name]()
    if block is not None:
        net = net.clone(block=block)
    overrides = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in overrides.items()
        if value is not None
    }
    if "dtype" in overrides:
        overrides["dtype"] = _float_dtype(overrides["dtype"])
    net_fields = _field_names(type(net)) - {"block", "block_options", "parent", "name"}
    block_fields = _field_names(block_class(net.block)) - _BLOCK_FIELDS
    options = dict(net.block_options)
    for key in sorted(overrides.keys() - net_fields):
        owners = [name for name, cls in BLOCKS.items() if key in _field_names(cls) - _BLOCK_FIELDS]
        if owners and key not in block_fields:
            raise UsageError(f"{key} belongs to block {' or '.join(owners)}; set model.block too")
        check_known("override", key, sorted(net_fields | block_fields))
        options[key] = overrides.pop(key)
    net = net.clone(**overrides, block_options=tuple(sorted(options.items())))
    net.check()
    if not (net.is_fused or _has_place(net)):
        raise UsageError(
            f"block={net.block!r}: {type(net).__name__} has no place for it; leave model.block "
            f"unset, or choose a net that has: {', '.join(_families_with(net.block))}"
        )
    return net


def _has_place(net: Net) -> bool:
    """Returns True if one of a net's convolutions is of the class that its field `block` names."""
    return any(net.block_of(spec) == net.block for spec in net.plan())


def _families_with(block: str) -> list[str]:
    """Returns patterns of `list_models` for the files of nets that have a place for a block."""
    return [
        f"{family.__name__.rpartition('.')[2]}*"
        for family in _FAMILIES
        if any(_takes(make(), block) for make in family.VARIANTS.values())
    ]


def _takes(net: Net, block: str) -> bool:
    """Returns True if a net can be built with a block, and has a place for it."""
    net = net.clone(block=block)
    with suppress(UsageError):
        net.check()
        return _has_place(net)
    return False


def _field_names(module: type) -> set[str]:
    return {field.name for field in dataclasses.fields(module)}


def _float_dtype(dtype: Any) -> Any:
    choices = ["float32", "bfloat16", "float16"]
    if jax.config.jax_enable_x64:
        choices.append("float64")
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in choices:
        raise UsageError(
            f"dtype={name}: choose from {', '.join(choices)} (float64 needs JAX_ENABLE_X64=1)"
        )
    return jnp.dtype(name).type
