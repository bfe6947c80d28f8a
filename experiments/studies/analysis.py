"""Analysis of the branches of a trained RepVGG: functions of `(net, variables)` for the notebook.

The net's blocks must be RepVGG's, with all or some of the branches. Branches are folded as in
`fuse`, so that those of a layer sum to its fused kernel.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int

from repvgg_jax.affine import Affine, identity, pad_to
from repvgg_jax.blocks.plain import PlainBlock
from repvgg_jax.blocks.repvgg import RepVGGBlock
from repvgg_jax.config.build import make_source, make_transform
from repvgg_jax.config.classes import check_classes
from repvgg_jax.config.workdir import read_config
from repvgg_jax.data.images import to_network_input
from repvgg_jax.data.pipeline import eval_batches
from repvgg_jax.errors import UsageError
from repvgg_jax.fusion.fuse import fuse
from repvgg_jax.ops.batch_norm import BN_EPSILON

Variables = Mapping[str, Any]
Row = dict[str, Any]
Images = Float[Array, "batch height width 3"]


def images_of(workdir: str | Path, count: int) -> tuple[Images, Int[Array, "batch"]]:
    """Returns normalized images of a run's evaluation split, and their labels.

    They are spread over the whole split, which may be sorted by class.

    Raises:
      UsageError: if there is no run, or its data cannot be opened or have other classes.
    """
    config = read_config(workdir)
    source, transform = make_source(config, "test"), make_transform(config)
    check_classes(Path(workdir), source.class_names, source.name)
    count = min(count, len(source))
    chosen = source.select(np.linspace(0, len(source) - 1, count).astype(int).tolist())
    batch = next(iter(eval_batches(chosen, transform, count, workers=0)))
    batch = {name: leaf[batch["mask"] > 0] for name, leaf in batch.items()}
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    return to_network_input(jnp.asarray(batch["image"]), mean, std), jnp.asarray(batch["label"])


def branches_of(net: nn.Module, variables: Variables) -> dict[str, list[str]]:
    """Returns the branches of each layer; raises UsageError for other blocks than RepVGG's."""
    found = {}
    for name, block in net.blocks().items():
        if type(block) not in (RepVGGBlock, PlainBlock):
            raise UsageError(f"{name} is a {type(block).__name__}; only RepVGGBlock is supported")
        params = variables["params"][name]
        found[name] = [b for b in ("1x1", "kxk", "identity") if f"bn_{b}" in params]
    return found


def folded_branches(net: nn.Module, variables: Variables) -> dict[str, dict[str, Affine]]:
    """Returns each layer's branches as evaluation-mode kxk kernels, which sum to the fused one."""
    folded, blocks = {}, net.blocks()
    for name, branches in branches_of(net, variables).items():
        params, stats = variables["params"][name], variables["batch_stats"][name]
        block = blocks[name]
        k = block.kernel_size
        own = identity(block.identity_shape()) if "identity" in branches else None
        folded[name] = {
            branch: pad_to(
                (k, k),
                block.fold_norm(own, params, stats, branch)
                if branch == "identity"
                else block.fold_branch(params, stats, branch),
            )
            for branch in branches
        }
    return folded


def branch_table(net: nn.Module, variables: Variables) -> list[Row]:
    """Returns a row for each branch of each layer.

    `kernel_norm`: |W| of the trained kernel, or sqrt(channels) for the identity; `scale`: the mean
    over channels of |gamma| / sqrt(var + epsilon); `folded_norm`: |W'| of the folded branch;
    `center_share`: <C_b, C> / <C, C> of the fused center tap C = sum_b C_b. The shares of a layer
    add up to 1; one is negative where a branch works against the others.
    """
    rows = []
    for layer, branches in folded_branches(net, variables).items():
        params, stats = variables["params"][layer], variables["batch_stats"][layer]
        centers = {branch: _center(affine.kernel) for branch, affine in branches.items()}
        total = sum(centers.values())
        for branch, affine in branches.items():
            norm = jnp.sqrt(stats[f"bn_{branch}"]["var"] + BN_EPSILON)
            scale = jnp.abs(params[f"bn_{branch}"]["scale"]) / norm
            kernel = params.get(f"conv_{branch}", {}).get("kernel")
            own = scale.size**0.5 if kernel is None else jnp.linalg.norm(kernel.ravel())
            rows.append(
                {
                    "layer": layer,
                    "branch": branch,
                    "kernel_norm": float(own),
                    "scale": float(scale.mean()),
                    "folded_norm": float(jnp.linalg.norm(affine.kernel.ravel())),
                    "center_share": float((centers[branch] * total).sum() / (total**2).sum()),
                }
            )
    return rows


def kernel_table(net: nn.Module, variables: Variables) -> list[Row]:
    """Compares each layer's fused kernel F with its kxk kernel, trained (K) and folded (K').

    `change`: |F - K'| / |F|; `center`, `trained_center`: share of the center tap in the energy
    |.|^2 of F and of K.
    """
    rows = []
    for layer, branches in folded_branches(net, variables).items():
        fused = sum(affine.kernel for affine in branches.values())
        if "kxk" not in branches:
            continue
        trained = variables["params"][layer]["conv_kxk"]["kernel"]
        folded = branches["kxk"].kernel
        norm = jnp.linalg.norm(fused.ravel())
        rows.append(
            {
                "layer": layer,
                "change": float(jnp.linalg.norm((fused - folded).ravel()) / norm),
                "center": float((_center(fused) ** 2).sum() / norm**2),
                "trained_center": float((_center(trained) ** 2).sum() / (trained**2).sum()),
            }
        )
    return rows


def _center(kernel: Array) -> Array:
    return kernel[kernel.shape[0] // 2, kernel.shape[1] // 2]


def receptive_fields(net: nn.Module, variables: Variables, images: Images) -> dict[str, Array]:
    """Returns mean |d y / d image| [height, width] of each stage, scaled to a maximum of 1.

    y is the sum over channels of the map's middle pixel (the effective receptive field, arXiv
    1701.04128).
    """
    stages = [info.name for info in net.feature_info()]

    @jax.jit
    def field(images: Array) -> list[Array]:
        maps, pull = jax.vjp(lambda x: net.features(variables, x)[0], images)
        fields = []
        for chosen in range(len(maps)):
            seeds = [
                jnp.zeros_like(m).at[:, m.shape[1] // 2, m.shape[2] // 2].set(float(i == chosen))
                for i, m in enumerate(maps)
            ]
            gradient = jnp.abs(pull(tuple(seeds))[0]).mean((0, 3))
            fields.append(gradient / jnp.maximum(gradient.max(), jnp.finfo(gradient.dtype).tiny))
        return fields

    return dict(zip(stages, field(images), strict=True))


def activation_ranges(net: nn.Module, variables: Variables, images: Images) -> list[Row]:
    """Returns `min`, `max`, `low` (0.1%), `high` (99.9%) of each layer's output before its ReLU."""
    layers = [spec.name for spec in net.plan()]
    _, state = net.apply(
        variables,
        images,
        capture_intermediates=lambda module, _: module.name in layers,
        mutable=["intermediates"],
    )
    rows = []
    for layer in layers:
        y = np.asarray(state["intermediates"][layer]["__call__"][0])
        low, high = np.percentile(y, [0.1, 99.9])
        ends = {"min": y.min(), "max": y.max(), "low": low, "high": high}
        rows.append({"layer": layer, **{name: float(value) for name, value in ends.items()}})
    return rows


def weight_table(net: nn.Module, variables: Variables) -> list[Row]:
    """Returns statistics of each fused layer's weights for symmetric rounding to 255 levels.

    `peak`: max |w| / std of w; `kurtosis`: E[w^4] / E[w^2]^2 (3 for a Gaussian); `spread`: the
    largest channel's max |w| over the median channel's; `tensor_error`, `channel_error`: relative
    RMS error of rounding with one scale for the layer, and with one for each channel.
    """
    _, fused = fuse(net, variables)
    rows = []
    for layer in net.blocks():
        w = np.asarray(fused["params"][layer]["conv"]["kernel"], np.float64)
        peaks = np.abs(w).max((0, 1, 2))
        rows.append(
            {
                "layer": layer,
                "peak": float(np.abs(w).max() / w.std()),
                "kurtosis": float((w**4).mean() / (w**2).mean() ** 2),
                "spread": float(peaks.max() / np.median(peaks)),
                "tensor_error": rounding_error(w, np.abs(w).max()),
                "channel_error": rounding_error(w, peaks),
            }
        )
    return rows


def rounding_error(w: np.ndarray, peak: np.ndarray | float) -> float:
    """Returns |round(w / s) s - w| / |w| for s = peak / 127."""
    step = np.maximum(peak, np.finfo(w.dtype).tiny) / 127
    return float(np.linalg.norm(np.round(w / step) * step - w) / np.linalg.norm(w))


def without_branch(variables: Variables, layer: str, branch: str) -> dict[str, Any]:
    """Returns the variables with gamma = beta = 0 in a branch's BatchNorm, so that it outputs 0."""
    params = dict(variables["params"])
    norm = params[layer][f"bn_{branch}"]
    params[layer] = {**params[layer], f"bn_{branch}": jax.tree.map(jnp.zeros_like, norm)}
    return {**variables, "params": params}


def removals(
    net: nn.Module, variables: Variables, images: Images, labels: Int[Array, "batch"]
) -> list[Row]:
    """Returns loss (nats) and top-1 with all branches, and with each single branch removed."""

    @jax.jit
    def measure(variables: Variables) -> tuple[Array, Array]:
        logits = net.apply(variables, images, train=False)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return losses.mean(), (logits.argmax(-1) == labels).mean()

    def row(layer: str, branch: str, variables: Variables) -> Row:
        loss, top1 = measure(variables)
        return {"layer": layer, "branch": branch, "loss": float(loss), "top1": float(top1)}

    rows = [row("none", "none", variables)]
    remove = partial(without_branch, variables)
    for layer, branches in branches_of(net, variables).items():
        rows += [row(layer, branch, remove(layer, branch)) for branch in branches]
    return rows
