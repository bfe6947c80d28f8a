"""Strict import and export of PyTorch weights, in the official layout or timm's, in both forms."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from repvgg_jax.errors import UsageError
from repvgg_jax.interop.pytorch_layout import NAMES, check_counterpart, check_strides, entries
from repvgg_jax.nets import Net, Variables, abstract, check_pair
from repvgg_jax.nets.repvgg import RepVGGPlus

WRAPPERS = ("state_dict", "model", "ema", "model_ema", "state_dict_ema")  # the first match is used
COUNTER = "num_batches_tracked"  # PyTorch's step count, which a fixed momentum does not use


def from_torch(net: Net, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the weights of a PyTorch model as `{"params", "batch_stats"}` or `{"params"}`.

    Convolution kernels are converted from OIHW to HWIO, dense kernels from [out, in] to [in, out],
    and squeeze-and-excite's 1x1 convolutions to dense layers. The layout (official or timm) is
    detected. BatchNorms' step counters are ignored, and the prefix `module.` of
    DistributedDataParallel is removed. Weights may be under one of the keys `WRAPPERS`.

    Args:
      net: the train form from `create`, or the fused form `net.clone(block="fused")`.
      state_dict: name -> PyTorch tensor or NumPy array.

    Raises:
      UsageError: if the weights are of the other form or another architecture, if names are missing
        or unexpected or shapes differ, or if the net has no counterpart in PyTorch.
    """
    source = _plain_state_dict(state_dict)
    is_timm = any(name.startswith(("stem.", "head.fc.")) for name in source)
    layout = "timm" if is_timm else "official"
    _check_same_kind(net, layout, source)
    shapes = _leaves(abstract(net))
    given = {name: _as_numpy(name, value) for name, value in source.items()}
    missing, wrong, leaves = [], [], {}
    for name, path, change in entries(net, layout):
        if name not in given:
            missing.append(name)
            continue
        array, like = given.pop(name), shapes[path]
        expected = change.to_torch(np.broadcast_to(np.float32(0), like.shape)).shape
        if array.shape == expected:
            # Copied, since a view would change when the PyTorch model is updated.
            leaves[path] = jnp.array(change.to_ours(array), like.dtype, copy=True)
        else:
            wrong.append(f"{name} {array.shape}, not {expected}")
    _check_none_left(
        f"the weights are not those of this net ({layout} names)",
        {"missing": missing, "unexpected": list(given), "of wrong shape": wrong},
    )
    return unflatten_dict(leaves, sep="/")


def to_torch(net: Net, variables: Variables, layout: str = "official") -> dict[str, np.ndarray]:
    """Returns the variables with PyTorch's names and shapes, for `load_state_dict`.

    This is the inverse of `from_torch`. BatchNorm's `num_batches_tracked` is set to 0.

    Args:
      net: the train form or the fused form.
      variables: variables of that net.
      layout: "official" or "timm".

    Raises:
      UsageError: if the variables are not the net's, or the net has no counterpart in PyTorch.
    """
    listed = entries(net, layout)
    check_strides(net)
    check_pair(variables)
    needed, given = _leaves(abstract(net)), _leaves(variables)
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
        state_dict[name] = np.array(change.to_torch(leaf), order="C")
        if name.endswith(".running_var"):
            state_dict[name.replace("running_var", COUNTER)] = np.zeros((), np.int64)
    return state_dict


def _leaves(variables: Any) -> dict[str, Any]:
    kept = {name: dict(variables[name]) for name in ("params", "batch_stats") if name in variables}
    return flatten_dict(kept, sep="/")


def _plain_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns name -> tensor without wrappers, prefix and step counters."""
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise UsageError(
            "not a state dict: expected a non-empty mapping of names to tensors, such as "
            f"state_dict() of a PyTorch model, got {type(state_dict).__name__}"
        )
    for key in WRAPPERS:
        if isinstance(state_dict.get(key), Mapping):
            return _plain_state_dict(state_dict[key])
    source = {str(name): value for name, value in state_dict.items()}
    if all(name.startswith("module.") for name in source):
        source = {name.removeprefix("module."): value for name, value in source.items()}
    return {name: value for name, value in source.items() if not name.endswith(f".{COUNTER}")}


def _as_numpy(name: str, value: Any) -> np.ndarray:
    """Returns a PyTorch tensor or an array as a NumPy array, without importing PyTorch."""
    if type(value).__module__.split(".")[0] == "torch" and callable(getattr(value, "detach", None)):
        value = value.detach().cpu().float()  # NumPy supports neither bfloat16 nor gradients
    try:
        array = np.asarray(value)
        if jnp.issubdtype(array.dtype, jnp.floating):
            return array
    except (TypeError, ValueError):
        pass
    raise UsageError(f"{name}: expected a floating-point tensor, got {value!r:.60}")


def _check_same_kind(net: Net, layout: str, source: Mapping[str, Any]) -> None:
    """Raises UsageError with advice if the weights are of another form or model than the net."""
    check_counterpart(net, "official")
    plus = layout == "official" and any(".blocks." in name for name in source)
    if plus != isinstance(net, RepVGGPlus):
        source_name, net_name = ("RepVGGplus", "RepVGG") if plus else ("RepVGG", "RepVGGplus")
        raise UsageError(
            f"the weights are for {source_name}, but the net is a {net_name}; create the net with "
            "the model name of the weights"
        )
    fused = any(f".{NAMES[layout].fused}." in name for name in source)
    if fused and not net.is_fused:
        raise UsageError(
            "the weights are in fused form, but the net is in train form, and fusion cannot "
            "be undone; import into net.clone(block='fused'), or use train-form weights"
        )
    if not fused and net.is_fused:
        raise UsageError(
            "the weights are in train form, but the net is fused; import into the net that "
            "create() returns, then call fuse(net, variables)"
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
