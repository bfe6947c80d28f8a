"""The order of examples is a function of the seed and the position."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from repvgg_jax.data.sampler import example_rng, stream_indices


@given(st.integers(1, 40), st.integers(0, 2**70), st.integers(0, 100), st.integers(0, 100))
@settings(max_examples=40)
def test_every_epoch_is_a_permutation_wherever_the_stream_is_cut(size, seed, start, count):
    stream = stream_indices(size, seed, 0, start + count)
    np.testing.assert_array_equal(stream[start:], stream_indices(size, seed, start, count))
    for epoch in range((start + count) // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_shuffle_differently():
    size = 100
    orders = [stream_indices(size, seed, e * size, size) for seed in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    draws = {example_rng(seed, position).random() for seed in (0, 1) for position in range(50)}
    assert len(draws) == 100
    # Order and augmentation are independent although both count from 0.
    assert (example_rng(0, 0).permutation(size) != orders[0]).any()
