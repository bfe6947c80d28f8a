"""Loops of compiled programs whose length is only known when they run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def stacked_loop(
    step: Callable[[Any, Array], tuple[Any, Any]], carry: Any, count: Array, most: int
) -> tuple[Any, Any]:
    """Returns what `lax.scan` would return for the first `count` steps of a scan over indices.

    Args:
      step: function from the carry and the index of a step to the next carry and an output.
      carry: the carry before the first step.
      count: number of steps, at most `most`.
      most: length of the stacked outputs; those beyond `count` are zeros.
    """
    step = jax.jit(step)  # so that it is traced once, not for the shapes of its output too

    def body(index: Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, outputs = state
        carry, output = step(carry, index)
        return carry, jax.tree.map(lambda rows, row: rows.at[index].set(row), outputs, output)

    _, shapes = jax.eval_shape(step, carry, jnp.int32(0))
    outputs = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, body, (carry, outputs))
