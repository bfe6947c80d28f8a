"""Nets by name: `create("repvgg_b1", num_classes=10)`, `list_models("repvgg*")`, `init`."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from repvgg_jax.blocks.registry import BLOCKS, module_type
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import deep_plain, mobileone, repvgg, residual_reorg

_VARIANTS = repvgg.VARIANTS | mobileone.VARIANTS | residual_reorg.VARIANTS | deep_plain.VARIANTS
NETS: dict[str, Callable[..., nn.Module]] = dict(sorted(_VARIANTS.items()))

# What a net's plan says of a block, and what Flax adds to every Module: not for `create` to set.
_PLANNED = {"features", "strides", "groups", "kernel_size", "dilation", "dtype"}
_PLANNED |= {"bn_group_size", "conv_algorithm", "parent", "name"}


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create` takes, those that match the shell-style pattern."""
    return fnmatch.filter(NETS, pattern)


def create(name: str, *, block: str | None = None, **overrides: Any) -> nn.Module:
    """A net by name, without arrays.

    Args:
      name: one of `list_models()`.
      block: one of `BLOCKS`; the model's own by default, which for RepVGG is `repvgg`.
      **overrides: fields of the net (`num_classes`, `widths`, `depths`, `strides`, `groups`,
        `dtype`, ...) or of its block (`branches`, ...); None keeps the model's own.

    Raises:
      UsageError: for an unknown name, block or override, naming the right ones.
    """
    _check_known("model", name, NETS)
    make_block = _own_block(NETS[name])
    if block is not None:
        if not isinstance(block, str):
            raise UsageError(
                f"block={block!r}: a name of {', '.join(BLOCKS)}; clone() takes a class"
            )
        _check_known("block", block, BLOCKS)
        # Naming a model's own block leaves it as that model has it.
        if BLOCKS[block].block is not module_type(make_block):
            make_block = BLOCKS[block].block
    overrides = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in overrides.items()
        if value is not None
    }
    if "dtype" in overrides:
        overrides["dtype"] = _float_dtype(overrides["dtype"])
    net_fields = _fields(NETS[name]) - {"block", "parent", "name"}
    block_fields = _fields(make_block) - _PLANNED
    for key in overrides:
        owners = [name for name, entry in BLOCKS.items() if key in _fields(entry.block) - _PLANNED]
        if owners and key not in net_fields | block_fields:
            raise UsageError(f"{key} belongs to block {' or '.join(owners)}; set model.block too")
        _check_known("override", key, sorted(net_fields | block_fields))
    of_block = {key: overrides.pop(key) for key in sorted(set(overrides) - net_fields)}
    net = NETS[name](**overrides, block=_with_options(make_block, tuple(of_block.items())))
    net.blocks()  # a plan that cannot be built says so here rather than in the middle of a trace
    return net


@cache
def _with_options(make_block: Callable[..., nn.Module], options: tuple) -> Callable[..., nn.Module]:
    """The block with some fields set; the same object for the same fields, so that nets compare."""
    return partial(make_block, **dict(options)) if options else make_block


def _own_block(make_net: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The block of a registry entry: of its partial, or else its class's default."""
    if isinstance(make_net, partial) and "block" in make_net.keywords:
        return make_net.keywords["block"]
    return module_type(make_net).block


def _fields(make: Callable[..., nn.Module]) -> set[str]:
    return {field.name for field in dataclasses.fields(module_type(make))}


def _check_known(what: str, name: str, known: Any) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
    raise UsageError(f"unknown {what} {name!r}: {hint}")


def _float_dtype(dtype: Any) -> Any:
    choices = ["float32", "bfloat16", "float16"]
    if jax.config.jax_enable_x64:
        choices.append("float64")
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in choices:
        raise UsageError(
            f"dtype={name}: choose {', '.join(choices)} (float64 needs JAX_ENABLE_X64=1)"
        )
    return jnp.dtype(name).type
