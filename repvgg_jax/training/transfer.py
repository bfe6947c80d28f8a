"""Initial weights from another run, a fused net or a RepOptimizer search."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from repvgg_jax.checkpoint.load import load
from repvgg_jax.config.build import Experiment
from repvgg_jax.config.classes import class_names, describe_classes
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import AUXILIARY_HEAD, Variables, init
from repvgg_jax.optim.repoptimizer import scale_gradients, to_plain, with_scales
from repvgg_jax.runtime.processes import inform_once, warn_once
from repvgg_jax.training.state import TrainState


def start_from_run(
    state: TrainState, workdir: str, names: Sequence[str], head: str | None = None
) -> TrainState:
    """Returns the state with the weights of another run's latest checkpoint; logs fresh parts.

    Args:
      state: the fresh state of this run.
      workdir: folder of the other run.
      names: class names of this run's data.
      head: "keep" or "reset", as `init_head` of the config. By default, the head is kept if both
        runs have the same classes, and stays fresh if they differ in number.

    Raises:
      UsageError: if there is no checkpoint, it does not fit the net, or the runs have different
        classes but heads of the same size, and `head` does not say what to do.
    """
    _, source = load(workdir)
    known = class_names(workdir)
    variables, fresh = transfer(state.train_variables, source, keep_heads=head != "reset")
    kept = "head" not in fresh
    if head == "keep" and not kept:
        raise UsageError(
            f"init_head=keep: the run in {workdir} has another number of classes; unset init_head"
        )
    if head is None and kept and known is not None and known != tuple(names):
        raise UsageError(
            f"init_from={workdir}: that run has {describe_classes(known)}, and this one "
            f"{describe_classes(names)}; set init_head=reset to train a new head for them, or "
            "init_head=keep if output k means the same in both"
        )
    inform_once(f"initialized from {workdir}; freshly initialized: {', '.join(fresh) or 'nothing'}")
    return state.starting_from(variables)


def transfer(
    fresh: Variables, source: Variables, keep_heads: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Returns `fresh` with the weights of `source`, except heads with another number of classes.

    Unless `keep_heads`, all heads stay fresh.

    The second result names the parts that stay fresh: `head`, the `fc` of auxiliary heads, or whole
    auxiliary heads missing from the source. Auxiliary heads that only the source has are dropped.

    Raises:
      UsageError: if anything else differs in name or shape, listing it.
    """
    ours, theirs = flatten_dict(fresh, sep="/"), flatten_dict(source, sep="/")
    variables = dict(ours)
    differing, reinitialized = [], []
    for name, leaf in sorted(ours.items()):
        _, block, *rest = name.split("/")
        value = theirs.get(name)
        is_head = block == "head" or "fc" in rest
        if value is not None and value.shape == leaf.shape and (keep_heads or not is_head):
            variables[name] = jnp.asarray(value, leaf.dtype)
        elif block.startswith(AUXILIARY_HEAD) and block not in source["params"]:
            reinitialized.append(block)
        elif is_head:
            reinitialized.append("/".join([block, *rest[:-1]]))
        else:
            differing.append(name)
    extra = sorted(
        name
        for name in theirs.keys() - ours.keys()
        if (block := name.split("/")[1]) in fresh["params"] or not block.startswith(AUXILIARY_HEAD)
    )
    if differing or extra:
        raise UsageError(
            "init_from does not match the net: missing or of a different shape: "
            f"{', '.join(differing[:3]) or 'nothing'} ({len(differing)} in all); "
            f"not in the net: {', '.join(extra[:3]) or 'nothing'} ({len(extra)} in all)"
        )
    return unflatten_dict(variables, sep="/"), list(dict.fromkeys(reinitialized))


def with_repoptimizer(experiment: Experiment) -> tuple[Experiment, dict[str, Any]]:
    """Returns the experiment with RepOptimizer in place of its optimizer, and initial variables.

    The scales come from the branches of a searched run (arXiv 2205.15242).

    Raises:
      UsageError: if `repoptimizer_from` is not a csla run, or its net is a different one.
    """
    net = experiment.net
    workdir = experiment.repoptimizer_from
    searched_net, searched = load(workdir)
    if searched_net.block != "csla":
        raise UsageError(
            f"optim.repoptimizer_from={workdir} must be a run with model.block=csla, which has the "
            f"scales; its block is {searched_net.block}"
        )
    branches = net.clone(block="csla")
    fresh = init(branches, jax.random.key(experiment.seed))
    transfer(fresh, searched)  # raises for another net
    _, start = to_plain(branches, with_scales(branches, fresh, searched))
    optimizer = optax.chain(scale_gradients(branches, searched), experiment.optimizer)
    return dataclasses.replace(experiment, optimizer=optimizer), start


def warn_if_fused(net: nn.Module) -> None:
    """Logs a warning if the net is fused, since the train form reaches higher accuracy."""
    if net.is_fused and net.plan():
        warn_once(
            "training the fused form, which has no BatchNorm and no branches and reaches lower "
            "accuracy; start from the train form, or add BatchNorms with repvgg_jax.insert_bn"
        )
