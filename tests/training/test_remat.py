"""Rematerialization saves memory and changes nothing else."""

import jax
import pytest

import repvgg_jax as rj
from repvgg_jax.fusion.verify import relative_error
from repvgg_jax.runtime.compilation import KEEP_RECOMPUTATION
from tests.support.steps import small_net
from tests.support.variables import random_images, random_variables


@pytest.mark.medium
@pytest.mark.parametrize("remat", ["nothing", "convolutions"])
def test_rematerialization_changes_memory_and_nothing_else(remat):
    fields = {"depths": (1, 8)}
    memory, results = [], []
    images = random_images(16, 32, 32, 3)
    for net in (small_net(**fields), small_net(**fields, remat=remat)):
        variables = random_variables(net, 0)

        def loss(params, net=net, stats=variables["batch_stats"]):
            logits, updated = net.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable="batch_stats"
            )
            return (logits**2).sum(), updated

        gradient = jax.jit(jax.grad(loss, has_aux=True), compiler_options=KEEP_RECOMPUTATION)
        compiled = gradient.lower(variables["params"]).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        results.append(compiled(variables["params"]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        assert relative_error(a, b) < 1e-4
    # XLA's CPU backend stores little more than the convolutions' outputs anyway.
    assert remat == "convolutions" or memory[1] < 0.8 * memory[0]


def test_unknown_policies_and_groups_are_named():
    with pytest.raises(rj.UsageError, match="remat='all': choose from nothing, convolutions"):
        small_net(remat="all")
    with pytest.raises(rj.UsageError, match="bn_group_size=0"):
        small_net(bn_group_size=0)
