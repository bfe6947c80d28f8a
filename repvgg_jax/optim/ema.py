"""Averages over training: EMA of parameters and statistics as one pair, and statistics anew."""

from __future__ import annotations

import jax

from repvgg_jax.nets import Averaged, Variables


def update_average(average: Variables, variables: Variables, decay: float) -> dict[str, Averaged]:
    """average + (1 - decay) (variables - average), for parameters and statistics alike."""
    return {
        name: Averaged(
            jax.tree.map(
                lambda mean, new: mean + (1 - decay) * (new - mean),
                dict(average[name]),
                dict(variables[name]),
            )
        )
        for name in average
    }
