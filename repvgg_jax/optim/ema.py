"""The exponential moving average (EMA) of parameters and BatchNorm statistics."""

import jax
from jax import Array

from repvgg_jax.nets import Averaged, Variables


def update_average(average: Variables, variables: Variables, decay: float) -> dict[str, Averaged]:
    """Returns average + (1 - decay) (variables - average) for parameters and statistics."""

    def move(mean: Array, new: Array) -> Array:
        return mean + (1 - decay) * (new - mean)

    return {
        name: Averaged(jax.tree.map(move, dict(average[name]), dict(variables[name])))
        for name in average
    }
