"""Strict import and export of PyTorch weights: RepVGG's in both forms, comparison nets' in one."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from repvgg_jax.errors import UsageError
from repvgg_jax.interop.layouts import (
    check_layout,
    check_registered,
    entries_in,
    layouts_of,
    recognized,
)
from repvgg_jax.interop.pytorch_checkpoint import COUNTER, find_state_dict, without_wrappers
from repvgg_jax.interop.pytorch_layout import (
    NAMES,
    check_counterpart,
    check_exportable,
    check_five_stages,
)
from repvgg_jax.nets import Net, Variables, abstract, check_pair
from repvgg_jax.nets.repvgg import RepVGG, RepVGGPlus


def from_torch(net: Net, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the weights of a PyTorch model as `{"params", "batch_stats"}` or `{"params"}`.

    Convolution kernels are converted from OIHW to HWIO, dense kernels from [out, in] to [in, out],
    and squeeze-and-excite's 1x1 convolutions to dense layers. The layout is recognized from
    the names: the official one or timm's of a RepVGG, torchvision's or timm's of a comparison net.
    BatchNorms' step counters are ignored, and prefixes that all names share are removed, such as
    `module.` or `_orig_mod.`.
    The weights may be an entry of a checkpoint; a warning says which one was taken if there are
    also averaged weights.

    Args:
      net: the train form from `create`, or the fused form `net.clone(block="fused")`.
      state_dict: name -> PyTorch tensor or NumPy array, or a checkpoint with such a mapping in it.

    Raises:
      UsageError: if the weights are of the other form or another architecture, if names are missing
        or unexpected or shapes differ, if a value is not finite, if the checkpoint has several
        models, or if the net has no counterpart in PyTorch.
    """
    source = without_wrappers(find_state_dict(state_dict))
    if isinstance(net, RepVGG):
        _check_same_kind(net, source)
    shapes = _leaves(abstract(net))
    layout, listed = recognized(net, source, shapes)
    given = {name: _as_numpy(name, value) for name, value in source.items()}
    needed: dict[str, tuple[int, ...]] = {}
    parts = []  # of each entry along the first axis
    for name, path, change in listed:
        begin = needed[name][0] if name in needed else 0
        shape = change.to_torch(np.broadcast_to(np.float32(0), shapes[path].shape)).shape
        needed[name] = (begin + shape[0], *shape[1:])
        parts.append(slice(begin, begin + shape[0]))
    head = next((name for name, path, _ in listed if path == "params/head/kernel"), "")
    _check_names_and_shapes(layout, head, given, needed)
    _check_finite(given)
    # Copied, since a view would change when the PyTorch model is updated.
    leaves = {
        path: jnp.array(change.to_ours(given[name][part]), shapes[path].dtype, copy=True)
        for (name, path, change), part in zip(listed, parts, strict=True)
    }
    return unflatten_dict(leaves, sep="/")


def to_torch(net: Net, variables: Variables, layout: str | None = None) -> dict[str, np.ndarray]:
    """Returns the variables with PyTorch's names and shapes, for `load_state_dict`.

    This is the inverse of `from_torch`. BatchNorm's `num_batches_tracked` is set to 0.

    Args:
      net: the train form or the fused form.
      variables: variables of that net.
      layout: "official" or "timm" for a RepVGG, "torchvision" or "timm" for a comparison net; None
        for the first of them that has the net.

    Raises:
      UsageError: if the variables are not the net's, or the net has no counterpart in PyTorch.
    """
    layout = layout or layouts_of(net)[0]
    check_layout(net, layout)
    needed = _leaves(abstract(net))
    listed = entries_in(net, layout, needed)
    check_exportable(net) if isinstance(net, RepVGG) else check_registered(net)
    check_pair(variables)
    given = _leaves(variables)
    missing = [path for path in needed if path not in given]
    extra = [path for path in given if path not in needed]
    wrong = [
        f"{path} {given[path].shape}, not {like.shape}"
        for path, like in needed.items()
        if path in given and given[path].shape != like.shape
    ]
    _check_none_left(
        "the variables are not those of this net",
        {"missing": missing, "unexpected": extra, "of wrong shape": wrong},
    )
    state_dict: dict[str, np.ndarray] = {}
    for name, path, change in listed:
        leaf = np.asarray(given[path])
        if leaf.dtype not in (np.float16, np.float32, np.float64):
            leaf = leaf.astype(np.float32)  # PyTorch does not support NumPy's bfloat16
        array = np.array(change.to_torch(leaf), order="C")
        before = [state_dict[name]] if name in state_dict else []
        state_dict[name] = np.concatenate([*before, array])
        if name.endswith(".running_var"):
            state_dict[name.replace("running_var", COUNTER)] = np.zeros((), np.int64)
    return state_dict


def _leaves(variables: Any) -> dict[str, Any]:
    kept = {name: dict(variables[name]) for name in ("params", "batch_stats") if name in variables}
    return flatten_dict(kept, sep="/")


def _as_numpy(name: str, value: Any) -> np.ndarray:
    """Returns a PyTorch tensor or an array as a NumPy array, without importing PyTorch."""
    try:
        if type(value).__module__.split(".")[0] == "torch" and value.is_floating_point():
            value = value.detach().cpu().float()  # NumPy supports neither bfloat16 nor gradients
        array = np.asarray(value)
        if jnp.issubdtype(array.dtype, jnp.floating):
            return array
    except (AttributeError, TypeError, ValueError, RuntimeError):
        pass  # sparse, quantized, without data, or not a tensor
    kind = f"{type(value).__name__} {getattr(value, 'dtype', '')}".rstrip()
    raise UsageError(f"{name}: expected a dense floating-point tensor, got {kind}")


def _check_same_kind(net: RepVGG, source: Mapping[str, Any]) -> None:
    """Raises UsageError with advice if the weights are of another form or model than the net."""
    check_counterpart(net)
    check_five_stages(
        net,
        "to import, set model.name to the model of the weights, and unset model.depths, "
        "model.widths and model.strides, as in configs/a0.py",
    )
    trained = any(f".{names.conv_kxk}." in name for names in NAMES.values() for name in source)
    fused = any(f".{names.fused}." in name for names in NAMES.values() for name in source)
    if not trained and not fused:
        return  # weights of another family, which the names of all will tell
    plus = any(".blocks." in name for name in source)
    if plus != isinstance(net, RepVGGPlus):
        source_name, net_name = ("RepVGGplus", "RepVGG") if plus else ("RepVGG", "RepVGGplus")
        raise UsageError(
            f"the weights are for {source_name}, but the net is a {net_name}; create the net with "
            "the model name of the weights"
        )
    if fused and not net.is_fused:
        raise UsageError(
            "the weights are in fused form, but the net is in train form, and fusion cannot "
            "be undone; use train-form weights, or import into net.clone(block='fused'), which is "
            "model.block=fused in a config"
        )
    if not fused and net.is_fused:
        raise UsageError(
            "the weights are in train form, but the net is fused; import into the net that "
            "create() returns, then call fuse(net, variables)"
        )


def _check_names_and_shapes(
    layout: str,
    head: str,
    given: Mapping[str, np.ndarray],
    needed: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises UsageError unless both have the same names and shapes."""
    missing = [name for name in needed if name not in given]
    unexpected = [name for name in given if name not in needed]
    wrong = [name for name in needed if name in given and given[name].shape != needed[name]]
    same_body = all(
        name.startswith(head.removesuffix("weight")) or "_aux.3." in name for name in wrong
    )
    if head in wrong and same_body and not missing and not unexpected:
        theirs, ours = given[head].shape, needed[head]
        if theirs[1:] == ours[1:]:
            raise UsageError(
                f"the weights have {theirs[0]} classes and the net has {ours[0]}; import them with "
                f"num_classes={theirs[0]} into a workdir of their own, and start the training from "
                "it with config.init_from, which re-initializes the head"
            )
    _check_none_left(
        f"the weights are not those of this net ({layout} names)",
        {
            "missing": missing,
            "unexpected": unexpected,
            "of wrong shape": [f"{name} {given[name].shape}, not {needed[name]}" for name in wrong],
        },
    )


def _check_finite(given: Mapping[str, np.ndarray]) -> None:
    """Raises UsageError if a tensor has values that are NaN, infinite or too large for float32."""
    with np.errstate(over="ignore"):
        counts = {
            name: np.count_nonzero(~np.isfinite(array.astype(np.float32)))
            for name, array in given.items()
        }
    if bad := [name for name, count in counts.items() if count]:
        raise UsageError(
            f"{len(bad)} of {len(given)} tensors have values that are NaN or infinite, the first "
            f"is {bad[0]} ({counts[bad[0]]} of {given[bad[0]].size} values); use weights from "
            "before the training diverged"
        )


def _check_none_left(message: str, leftovers: Mapping[str, list[str]]) -> None:
    """Raises UsageError with the length and first names of each list, unless all are empty."""
    parts = [
        f"{len(names)} {problem}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for problem, names in leftovers.items()
        if names
    ]
    if parts:
        raise UsageError(f"{message}; {'; '.join(parts)}")
