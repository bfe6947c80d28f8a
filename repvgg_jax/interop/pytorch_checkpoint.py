"""State dicts inside PyTorch checkpoints: by name, and without the prefixes of wrappers."""

import re
from collections.abc import Mapping
from typing import Any

from absl import logging

from repvgg_jax.errors import UsageError, shortened

USUAL = ("state_dict", "model")  # entries that are taken without a warning
AVERAGED = re.compile(r"(^|[_.])(ema|swa|avg|averaged?)([_.]|$)", re.IGNORECASE)
COUNTER = "num_batches_tracked"  # PyTorch's count of steps, unused with a fixed momentum
OWN = ("stage", "stem", "head", "linear")  # first parts of both layouts' names, not of wrappers


def find_state_dict(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the state dict of a checkpoint, or the checkpoint itself if it is one.

    Averaged weights (`state_dict_ema`, `model_ema`, `ema`, ...) are taken only if there are no
    others. A warning names the entry that was taken if there was a choice, or if it is an unusual
    one.

    Raises:
      UsageError: if there are no weights, or several state dicts and none is the obvious one.
    """
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise UsageError(
            "not a state dict: expected a non-empty mapping of names to tensors, such as "
            f"state_dict() of a PyTorch model, got {type(checkpoint).__name__}"
        )
    found = state_dicts(checkpoint)
    if not found:
        if not any(hasattr(value, "shape") for value in checkpoint.values()):
            raise UsageError(
                f"no weights in the checkpoint; it has {shortened(list(map(str, checkpoint)))}"
            )
        return checkpoint
    candidates = [name for name in found if not AVERAGED.search(name)] or list(found)
    taken, others = candidates[0], [name for name in found if name != candidates[0]]
    if len(candidates) > 1:
        raise UsageError(
            f"the checkpoint has the weights {', '.join(found)}; choose one of them: --weights "
            f"FILE:{taken}, or read_torch('FILE:{taken}')"
        )
    if others:
        logging.warning(
            "the checkpoint has the weights %s; took %s; to take the others: --weights FILE:%s",
            ", ".join(found),
            taken,
            others[0],
        )
    elif taken not in USUAL:
        logging.warning("took the weights from the checkpoint's entry %s", taken)
    return found[taken]


def state_dicts(checkpoint: Any) -> dict[str, Mapping[str, Any]]:
    """Returns the state dicts in a checkpoint by name, such as `model` or `model_ema.state_dict`.

    They are those of the checkpoint's entries, and of the entries' own, that contain convolution
    kernels. An optimizer's momenta are nested deeper, and losses and metrics have no kernels.
    """
    if not isinstance(checkpoint, Mapping):
        return {}
    inside = {str(name): value for name, value in checkpoint.items() if isinstance(value, Mapping)}
    deeper = {
        f"{name}.{inner}": value
        for name, mapping in inside.items()
        for inner, value in mapping.items()
        if isinstance(value, Mapping)
    }
    return {name: mapping for name, mapping in (inside | deeper).items() if _has_kernels(mapping)}


def without_wrappers(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state dict without step counters and without prefixes that all names share.

    Such prefixes come from modules around the model, in any order: `module.` from
    DistributedDataParallel and AveragedModel (which also adds `n_averaged`), `_orig_mod.` from
    `torch.compile`, `model.`, `net.` or `backbone.` from training code.
    """
    source = {
        str(name): value for name, value in state_dict.items() if not str(name).endswith(COUNTER)
    }
    while source:
        if len(source) > 1:
            source.pop("n_averaged", None)
        prefix = next(iter(source)).partition(".")[0] + "."
        if prefix.startswith(OWN) or not all(name.startswith(prefix) for name in source):
            break
        source = {name.removeprefix(prefix): value for name, value in source.items()}
    return source


def _has_kernels(mapping: Mapping[str, Any]) -> bool:
    return any(len(getattr(value, "shape", ())) == 4 for value in mapping.values())
