"""The exponential moving average (EMA) of parameters and BatchNorm statistics."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repvgg_jax.nets import Averaged, Variables


def update_average(
    average: Variables, variables: Variables, decay: Array | float
) -> dict[str, Averaged]:
    """Returns average + (1 - decay) (variables - average) for parameters and statistics."""

    def move(mean: Array, new: Array) -> Array:
        return mean + (1 - decay) * (new - mean)

    return {
        name: Averaged(jax.tree.map(move, dict(average[name]), dict(variables[name])))
        for name in average
    }


def decay_at(step: Array | int, decay: float, warmup: bool) -> Array | float:
    """Returns the decay of the update after `step` earlier ones.

    With `warmup` this is min(decay, (1 + step) / (10 + step)), as in TensorFlow's moving averages.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else decay


def initial_weight(steps: int, decay: float, warmup: bool) -> float:
    """Returns the weight of the initial values in an average after a number of updates.

    Example:
      >>> round(initial_weight(180, 0.9999, warmup=False), 3)
      0.982
    """
    if not warmup:
        return decay**steps
    earlier = np.arange(min(steps, 10_000))  # the weight is 0 in float64 long before
    return float(np.prod(np.minimum(decay, (1 + earlier) / (10 + earlier))))
