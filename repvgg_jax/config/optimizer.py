"""The optimizer that `config.optim` describes."""

import optax
from flax import linen as nn
from ml_collections import ConfigDict

from repvgg_jax.blocks.repvgg import BRANCHES
from repvgg_jax.errors import UsageError
from repvgg_jax.optim import sgd


def make_optimizer(
    config: ConfigDict, net: nn.Module, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns the optimizer described by `config.optim`, for the parameters of `net`."""
    values = config.optim
    branches = set(config.model.branches or BRANCHES)
    if values.custom_l2 and not (net.block == "repvgg" and {"kxk", "1x1"} <= branches):
        raise UsageError(
            "optim.custom_l2 needs blocks with a kxk and a 1x1 branch, each with a BatchNorm: "
            "model.block=repvgg, with both in model.branches"
        )
    frozen = sorted(net.frozen_blocks())
    frozen_rules = [(f"{name}(_se)?/.*", 0.0) for name in frozen]
    optimizer = sgd.sgd(
        schedule,
        momentum=values.momentum,
        nesterov=values.nesterov,
        weight_decay=values.weight_decay,
        decay_rules=values.decay_rules,
        rate_rules=(*frozen_rules, *values.rate_rules, (r".*/bias", values.bias_rate_factor)),
        custom_l2=bool(values.custom_l2),
    )
    chain = [optimizer]
    if values.clip_norm is not None:
        chain.insert(0, optax.clip_by_global_norm(values.clip_norm))
    if values.max_norm is not None:
        chain.append(sgd.max_norm(values.max_norm, frozen))
    return optax.chain(*chain) if len(chain) > 1 else optimizer


def check_repoptimizer(config: ConfigDict, net: nn.Module) -> None:
    """Raises UsageError if `optim.repoptimizer_from` is set and does not fit the other fields."""
    values = config.optim
    if values.repoptimizer_from is None:
        return
    if net.block != "plain":
        raise UsageError("optim.repoptimizer_from needs a plain net: set model.block=plain")
    if values.clip_norm is not None or values.max_norm is not None:
        raise UsageError(
            "optim.repoptimizer_from does not work with optim.clip_norm and optim.max_norm; "
            "unset them"
        )
    if net.initializer is not None:
        raise UsageError(
            "optim.repoptimizer_from determines the initial weights; unset model.initializer"
        )
