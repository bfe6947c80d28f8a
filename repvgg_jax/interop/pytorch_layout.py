"""The names and shapes of RepVGG's weights in PyTorch: official and timm layout, both forms.

`entries` lists every array once as (PyTorch name, path in the variables, conversion between them).
Import and export both use this list, so that each is the inverse of the other.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from repvgg_jax.blocks.repvgg import BRANCHES
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import BlockSpec
from repvgg_jax.nets.repvgg import RepVGG, RepVGGPlus
from repvgg_jax.ops.batch_norm import BN_EPSILON


class Change(NamedTuple):
    """The conversion of an array between PyTorch and JAX, in both directions."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


AS_IT_IS = Change(np.asarray, np.asarray)
CONV = Change(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))  # OIHW, HWIO
DENSE = Change(np.transpose, np.transpose)  # [out, in], [in, out]
DENSE_AS_CONV = Change(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])  # [out,in,1,1]

_STRIDES = "--config.model.strides=(2,2,2,2,2)"
_OTHER_WAYS = "docs/guides/pytorch_weights.md: --mode=export --format=torch writes any net"

BATCH_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


class Names(NamedTuple):
    """The names of a block's layers and of the head in a layout."""

    conv_kxk: str
    conv_1x1: str
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
    """One array: its PyTorch name, its path in the variables, and the conversion between them.

    Entries with the same name are consecutive parts of an array in PyTorch, along its first axis.
    """

    name: str
    path: str  # such as "params/stage0_block0/conv_kxk/kernel"
    change: Change


def affine_entries(name: str, path: str, change: Change) -> list[Entry]:
    """Returns the entries of the kernel and bias of a layer."""
    return [
        Entry(f"{name}.weight", f"params/{path}/kernel", change),
        Entry(f"{name}.bias", f"params/{path}/bias", AS_IT_IS),
    ]


def squeeze_excite_entries(squeeze: str, excite: str, block: str) -> list[Entry]:
    """Returns the entries of a squeeze-and-excite layer, two 1x1 convolutions in PyTorch."""
    return [
        *affine_entries(squeeze, f"{block}_se/squeeze", DENSE_AS_CONV),
        *affine_entries(excite, f"{block}_se/excite", DENSE_AS_CONV),
    ]


def batch_norm_entries(name: str, path: str) -> list[Entry]:
    """Returns the entries of the parameters and statistics of a BatchNorm."""
    return [
        Entry(f"{name}.{key}", f"{collection}/{path}/{leaf}", AS_IT_IS)
        for key, (collection, leaf) in BATCH_NORM.items()
    ]


def conv_bn_entries(conv: str, norm: str, block: str) -> list[Entry]:
    """Returns the entries of a convolution and its BatchNorm, a block of class "plain"."""
    kernel = Entry(f"{conv}.weight", f"params/{block}/conv_kxk/kernel", CONV)
    return [kernel, *batch_norm_entries(norm, f"{block}/bn_kxk")]


def entries(net: RepVGG, layout: str) -> list[Entry]:
    """Returns an entry for every array of a RepVGG in a layout, in the order of the net's plan.

    Raises:
      UsageError: if the block has no counterpart in PyTorch.
    """
    check_counterpart(net)
    names = NAMES[layout]
    if isinstance(net, RepVGGPlus):
        names = names._replace(squeeze="post_se.down", excite="post_se.up")
    listed: list[Entry] = []

    def add(name: str, change: Change, *path: str) -> None:
        listed.append(Entry(name, "/".join(path), change))

    def affine(name: str, change: Change, *path: str) -> None:
        listed.extend(affine_entries(name, "/".join(path), change))

    def batch_norm(name: str, *path: str) -> None:
        listed.extend(batch_norm_entries(name, "/".join(path)))

    heads = net.auxiliary_heads()
    for spec in net.plan():
        block = spec.name
        stage, name = _stage_and_block_name(net, layout, spec)
        if net.is_fused:
            affine(f"{name}.{names.fused}", CONV, block, "conv")
        else:
            for branch, size in ((names.conv_kxk, "kxk"), (names.conv_1x1, "1x1")):
                add(f"{name}.{branch}.conv.weight", CONV, "params", block, f"conv_{size}", "kernel")
                batch_norm(f"{name}.{branch}.bn", block, f"bn_{size}")
            if spec.strides == 1 and spec.inputs == spec.features:
                batch_norm(f"{name}.{names.identity}", block, "bn_identity")
        if spec.se_hidden:
            affine(f"{name}.{names.squeeze}", DENSE_AS_CONV, f"{block}_se", "squeeze")
            affine(f"{name}.{names.excite}", DENSE_AS_CONV, f"{block}_se", "excite")
        if block in heads:
            head = heads[block]
            add(f"{stage}_aux.0.conv.weight", CONV, "params", head, "conv", "kernel")
            batch_norm(f"{stage}_aux.0.bn", head, "bn")
            affine(f"{stage}_aux.3", DENSE, head, "fc")
    affine(names.head, DENSE, "head")
    return listed


def _stage_and_block_name(net: RepVGG, layout: str, spec: BlockSpec) -> tuple[str, str]:
    """Returns the names of a block's stage and of the block; those of the stem are equal."""
    stage, index = spec.stage, spec.index
    if layout == "timm":
        return ("stages", f"stages.{stage - 1}.{index}") if stage else ("stem", "stem")
    if stage == 0:
        return "stage0", "stage0"
    if not isinstance(net, RepVGGPlus):
        return f"stage{stage}", f"stage{stage}.{index}"
    if stage != 3:
        return f"stage{stage}", f"stage{stage}.blocks.{index}"
    half = net.depths[3] // 2
    if index < half:
        return "stage3_first", f"stage3_first.blocks.{index}"
    return "stage3_second", f"stage3_second.blocks.{index - half}"


def check_counterpart(net: RepVGG) -> None:
    """Raises UsageError if PyTorch's RepVGG has no counterpart of a net's block."""
    options = dict(net.block_options)
    same_block = net.block == "repvgg" and tuple(options.get("branches", BRANCHES)) == BRANCHES
    if not (net.is_fused or same_block) or net.kernel_size != 3:
        raise UsageError(
            f"block={net.block!r} with {options} and kernel_size={net.kernel_size} "
            "has no counterpart in PyTorch's RepVGG; use block='repvgg' with three branches and "
            "kernel_size=3, or its fused form"
        )


def check_five_stages(net: RepVGG, remedy: str) -> None:
    """Raises UsageError, with the remedy, unless a net has five stages, the first of one block."""
    if len(net.depths) != 5 or net.depths[0] != 1:
        raise UsageError(
            f"depths={_compact(net.depths)}: PyTorch's RepVGG has five stages, the first of one "
            f"block; {remedy}"
        )


def check_exportable(net: RepVGG) -> None:
    """Raises UsageError unless PyTorch's RepVGG would compute what a net computes.

    Its five stages start with stride 2, no layer is dilated, and the epsilon of BatchNorms is 1e-5.
    A state dict does not contain these, so it would load the weights of any other net but compute
    another function. Importing weights into such a net is allowed, for example to initialize a
    dilated backbone.
    """
    stages = "--config.model.depths=(1,1,2,4,1) --config.model.widths=(32,48,96,192,384)"
    check_five_stages(net, f"train with five, such as {stages} {_STRIDES}; {_OTHER_WAYS}")
    if any(spec.dilation != 1 for spec in net.plan()):
        raise UsageError(
            f"output_stride={net.output_stride}: PyTorch's RepVGG has no dilation, and would "
            f"compute a different function with these weights; train without it; {_OTHER_WAYS}"
        )
    if net.bn_epsilon != BN_EPSILON and not net.is_fused:
        raise UsageError(
            f"bn_epsilon={net.bn_epsilon}: PyTorch's RepVGG has {BN_EPSILON}, and would compute a "
            "different function with these weights; export the fused form"
        )
    strides = tuple(spec.strides for spec in net.plan() if spec.index == 0)
    if set(strides) != {2}:
        raise UsageError(
            f"strides={_compact(strides)}: every stage of PyTorch's RepVGG has stride 2, and it "
            f"would compute a different function with these weights; train with {_STRIDES}; "
            f"{_OTHER_WAYS}"
        )


def _compact(numbers: Sequence[int]) -> str:
    """Returns numbers as they are written in a flag: (1,2,3)."""
    return str(tuple(numbers)).replace(" ", "")
