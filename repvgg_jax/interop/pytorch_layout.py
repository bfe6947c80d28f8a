"""RepVGG's PyTorch layouts as a list: the official names and timm's, both forms.

`entries` lists every number once as (PyTorch name, place in our tree, how one becomes the other);
import and export walk that list, so that what one does the other undoes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from flax import linen as nn

from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.blocks.repvgg import RepVGGBlock
from repvgg_jax.errors import UsageError
from repvgg_jax.nets.repvgg import RepVGG, RepVGGPlus

LAYOUTS = ("official", "timm")


class Change(NamedTuple):
    """An array on its way between the frameworks, in both directions."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


AS_IT_IS = Change(np.asarray, np.asarray)
CONV = Change(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))  # OIHW, HWIO
DENSE = Change(np.transpose, np.transpose)  # [out, in], [in, out]
DENSE_AS_CONV = Change(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])  # [out,in,1,1]

BATCH_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


class Names(NamedTuple):
    """What a layout calls a block's parts, and the head."""

    kxk: str
    one: str
    identity: str
    fused: str
    squeeze: str
    excite: str
    head: str


NAMES = {
    "official": Names(
        "rbr_dense", "rbr_1x1", "rbr_identity", "rbr_reparam", "se.down", "se.up", "linear"
    ),
    "timm": Names(
        "conv_kxk", "conv_1x1", "identity", "reparam_conv", "attn.fc1", "attn.fc2", "head.fc"
    ),
}


class Entry(NamedTuple):
    """One array: its PyTorch name, its place in our variables, and what changes between."""

    name: str
    path: tuple[str, ...]
    change: Change


def entries(net: nn.Module, layout: str) -> list[Entry]:
    """Every array of a net in a layout, in the order of the net's plan.

    Raises:
      UsageError: for a net, block or layout that has no counterpart in PyTorch.
    """
    check_counterpart(net, layout)
    names, form = NAMES[layout], net.block
    if isinstance(net, RepVGGPlus):
        names = names._replace(squeeze="post_se.down", excite="post_se.up")
    listed: list[Entry] = []

    def add(name: str, change: Change, *path: str) -> None:
        listed.append(Entry(name, path, change))

    def affine(name: str, change: Change, *path: str) -> None:
        add(f"{name}.weight", change, "params", *path, "kernel")
        add(f"{name}.bias", AS_IT_IS, "params", *path, "bias")

    def batch_norm(name: str, *path: str) -> None:
        for key, (collection, leaf) in BATCH_NORM.items():
            add(f"{name}.{key}", AS_IT_IS, collection, *path, leaf)

    reads = 3
    heads = net.auxiliary_heads()
    for block, spec in net.plan().items():
        name = _block_name(net, layout, block)
        if form is FusedConv:
            affine(f"{name}.{names.fused}", CONV, block, "conv")
        else:
            for branch, size in ((names.kxk, 3), (names.one, 1)):
                add(f"{name}.{branch}.conv.weight", CONV, "params", block, f"conv{size}", "kernel")
                batch_norm(f"{name}.{branch}.bn", block, f"bn{size}")
            if spec["strides"] == 1 and reads == spec["features"]:
                batch_norm(f"{name}.{names.identity}", block, "bn0")
        if net.se_reduction:
            affine(f"{name}.{names.squeeze}", DENSE_AS_CONV, f"{block}_se", "squeeze")
            affine(f"{name}.{names.excite}", DENSE_AS_CONV, f"{block}_se", "excite")
        if block in heads:
            name, ours = f"{name.split('.')[0]}_aux", heads[block]
            add(f"{name}.0.conv.weight", CONV, "params", ours, "conv", "kernel")
            batch_norm(f"{name}.0.bn", ours, "bn")
            affine(f"{name}.3", DENSE, ours, "fc")
        reads = spec["features"]
    affine(names.head, DENSE, "head")
    return listed


def _block_name(net: RepVGG, layout: str, block: str) -> str:
    """`stage3_block5` as the layout has it; the stem is a block of its own in both."""
    stage, index = map(int, re.findall(r"\d+", block))
    if layout == "timm":
        return f"stages.{stage - 1}.{index}" if stage else "stem"
    if stage == 0:
        return "stage0"
    if not isinstance(net, RepVGGPlus):
        return f"stage{stage}.{index}"
    if stage != 3:
        return f"stage{stage}.blocks.{index}"
    half = net.depths[3] // 2
    if index < half:
        return f"stage3_first.blocks.{index}"
    return f"stage3_second.blocks.{index - half}"


def check_counterpart(net: nn.Module, layout: str) -> None:
    """Refuse what PyTorch's RepVGG has no place for.

    Raises:
      UsageError: for an unknown layout, and a net or block without counterpart in it.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"layout={layout!r}: choose from {LAYOUTS}")
    if type(net) not in (RepVGG, RepVGGPlus):
        raise UsageError(f"{type(net).__name__} has no PyTorch layout here; RepVGG's nets have")
    spec = next(iter(net.plan().values()))
    # Comparing with the default block tells other branches, bound by a partial.
    other = net.block is not FusedConv and net.block(**spec) != RepVGGBlock(**spec)
    if other or net.kernel_size != 3:
        raise UsageError(
            f"this {type(net.block(**spec)).__name__} has no counterpart in PyTorch's RepVGG: only "
            "block='repvgg' with three branches and kernel_size=3 has, and its fused form"
        )
    if layout == "timm" and type(net) is RepVGGPlus:
        raise UsageError("timm has no RepVGGplus; export it with layout='official'")
    if len(net.depths) != 5 or net.depths[0] != 1:
        raise UsageError(f"depths={net.depths}: PyTorch's RepVGG has a stem of 1 and 4 stages")


def check_strides(net: RepVGG) -> None:
    """Refuse to export a net whose weights PyTorch's RepVGG would take and use at other places.

    Strides and dilations are no part of a state dict. Importing into such a net is sound (a dilated
    backbone starts from the released weights); the way out is not.

    Raises:
      UsageError: unless every stage starts with stride 2 and nothing is dilated.
    """
    plan = net.plan()
    strides = tuple(spec["strides"] for name, spec in plan.items() if name.endswith("_block0"))
    dilations = {spec["dilation"] for spec in plan.values()}
    if set(strides) != {2} or dilations != {1}:
        raise UsageError(
            f"strides {strides} and dilations {sorted(dilations)}: PyTorch's RepVGG has stride 2 "
            "in every stage and dilation 1, and would compute something else with these weights"
        )
