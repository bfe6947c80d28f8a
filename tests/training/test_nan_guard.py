"""Tests that a run stops before it saves a state whose loss is not finite."""

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.checkpoint import manager
from repvgg_jax.errors import RunError
from tests.support.faults import before_step
from tests.support.runs import equal, tiny_config, train


@pytest.mark.medium
def test_a_nan_stops_the_run_before_it_is_saved(undisturbed, tmp_path, monkeypatch):
    def poisoned(state):
        kernel = state.params["head"]["kernel"]
        return state.replace(
            params=state.params | {"head": state.params["head"] | {"kernel": kernel * np.nan}}
        )

    with monkeypatch.context() as patch:
        before_step(patch, 3, poisoned)
        with pytest.raises(RunError, match=r"step 3: loss nan.*last good checkpoint.*; the usual"):
            train(tiny_config(train_checkpoint_every=1), tmp_path)
    good = manager.steps(tmp_path)
    assert good == [1]  # step 2 is deleted too: its parameters led to the NaN
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rj.load(tmp_path)[1]))
    again = train(tiny_config(train_checkpoint_every=1), tmp_path).state
    equal(again.eval_variables, undisturbed[0].eval_variables)
