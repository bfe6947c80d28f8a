"""Ahead-of-time compilation of the step: its costs, and topologies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from configs import quickstart
from repvgg_jax.bench import aot, hlo
from repvgg_jax.bench.counting import count_macs
from repvgg_jax.config.build import build
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.mesh import make_mesh, shard_batch
from repvgg_jax.training.state import fresh_state


def compiled_text(function, shape, dtype=jnp.float32):
    """Returns the program of four devices, each with a quarter of the leading axis."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    rows = PartitionSpec("data")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct(shape, dtype)).compile().as_text()


def five_times(x):
    return lax.scan(lambda c, _: (jnp.sin(lax.psum(c, "data")), None), x, None, length=5)[0]


# A device holds [2, 16] of [8, 16] float32, 128 bytes.
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: lax.psum(x, "data"), {"all-reduce": (1, 128)}),
        (lambda x: lax.all_gather(x, "data"), {"all-gather": (1, 4 * 128)}),
        (lambda x: lax.psum_scatter(x.T, "data", tiled=True), {"reduce-scatter": (1, 128 // 4)}),
        (
            lambda x: lax.ppermute(x.astype(jnp.int8), "data", [(0, 1), (1, 0)]),
            {"collective-permute": (1, 32)},
        ),
        (
            lambda x: lax.all_to_all(x, "data", split_axis=1, concat_axis=0, tiled=True),
            {"all-to-all": (1, 128)},
        ),
        (five_times, {"all-reduce": (5, 5 * 128)}),
        (
            lambda x: lax.psum((x[:, :3], x[:1] ** 2), "data"),
            {"all-reduce": (1, 2 * 3 * 4 + 16 * 4)},
        ),
        (lambda x: x + 1, {}),
    ],
    ids=["psum", "all_gather", "psum_scatter", "ppermute", "all_to_all", "scan", "tuple", "none"],
)
def test_collectives_of_a_known_program(function, expected):
    found = hlo.traffic(compiled_text(function, (8, 16)))
    assert found.collectives == expected
    assert found.loops == (function is five_times)


# As libtpu 0.0.52 writes a gathered weight under a convolution and a scattered gradient, abridged.
TPU = """HloModule jit_step, is_scheduled=true

%fused_computation.30 (param_0.48: bf16[512,4096]) -> (bf16[512,4096], bf16[4096,4096], u32[]) {
  %param_0.48 = bf16[512,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.25 = bf16[4096,4096]{1,0:T(8,128)(2,1)} all-gather(%param_0.48), channel_id=3
  ROOT %custom-call.1 = (bf16[512,4096]{1,0}, bf16[4096,4096]{1,0}, u32[]{:S(2)}) custom-call()
}

%async_collective_fusion.49 (param_0.51: bf16[512,4096]) -> (f32[1024,4096], bf16[4096,4096]) {
  %param_0.51 = bf16[512,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.27 = bf16[4096,4096]{1,0:T(8,128)(2,1)} all-gather(%param_0.51), channel_id=3
  ROOT %tuple.5 = (f32[1024,4096]{1,0:T(8,128)S(1)}, bf16[4096,4096]{1,0}) tuple(%all-gather.27)
}

%fused_computation.32 (param_0.52: bf16[512,4096]) -> bf16[4096,4096] {
  %param_0.52 = bf16[512,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.29 = bf16[4096,4096]{1,0:T(8,128)(2,1)} all-gather(%param_0.52), channel_id=3
  ROOT %custom-call.3 = bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)} custom-call(%all-gather.29)
}

%all-reduce-scatter (input: f32[4096,4096]) -> f32[512,4096] {
  %input = f32[4096,4096]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.8 = f32[4096,4096]{1,0:T(8,128)} all-reduce(%input), to_apply=%add.1.clone
  ROOT %dynamic-slice.12 = f32[512,4096]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.8)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %permute = (f32[8]{0}, f32[8]{0:T(128)S(1)}, u32[]{:S(2)}) collective-permute-start(%state)
  %done = f32[8]{0:T(128)S(1)} collective-permute-done(%permute)
  ROOT %tuple.6 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%state, %done)
}

%condition (state.1: (s32[], f32[8])) -> pred[] {
  %constant.32 = s32[]{:T(128)} constant(6)
  ROOT %lt.4 = pred[]{:T(512)} compare(%element, %constant.32), direction=LT
}

ENTRY %main.1 (w: bf16[512,4096]) -> f32[512,4096] {
  %async-collective-start = (bf16[512,4096]{1,0}) fusion(%w), calls=%fused_computation.30
  %fusion.49 = (f32[1024,4096]{1,0}) fusion(%x), kind=kOutput, calls=%async_collective_fusion.49
  %async-collective-done = bf16[4096,4096]{1,0} fusion(%y), calls=%fused_computation.32
  %while.19 = (s32[]{:T(128)}, f32[8]{0}) while(%tuple.26), condition=%condition, body=%body
  ROOT %fusion = f32[512,4096]{1,0:T(8,128)} fusion(%z), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_a_started_collective_counts_once_and_a_loop_counts_its_trips():
    assert hlo.traffic(TPU) == hlo.Traffic(
        {
            "all-gather": (1, 4096 * 4096 * 2),
            "reduce-scatter": (1, 512 * 4096 * 4),
            "collective-permute": (6, 6 * 8 * 4),
        },
        loops=1,
    )


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,16]{1,0:T(8,128)(2,1)S(1)}", 512),
        ("(bf16[3,3]{1,0}, /*index=5*/pred[5], u32[]{:S(2)}, token[])", 18 + 5 + 4),
        ("s4[7]{0:T(128)E(4)}", 4),
        ("f8e4m3fn[10]", 10),
        ("c64[2]", 16),
    ],
)
def test_the_size_of_a_shape(shape, size):
    assert hlo.shape_bytes(shape) == size


@pytest.fixture(scope="module")
def step():
    config = quickstart.get_config()
    config.model.depths = (1, 1, 1, 1)
    return config, aot.compile_step(config, aot.topology_devices("cpu:4"))


def state_and_batch(config):
    state = fresh_state(build(config))
    rows, size = config.train.batch_size, config.data.image_size
    batch = {
        "image": np.zeros((rows, size, size, 3), np.uint8),
        "label": np.zeros(rows, np.int32),
        "mask": np.ones(rows, np.float32),
    }
    return state, batch


@pytest.mark.medium
def test_the_compiled_step_takes_what_training_has_and_runs(step):
    config, compiled = step
    state, batch = state_and_batch(config)
    given = state, shard_batch(batch, make_mesh()), jax.random.key(0)
    # The trees differ in the schedule, a function; a call refuses other shapes and shardings.
    (arguments, _) = jax.tree.unflatten(compiled.in_tree, jax.tree.leaves(given))
    after, metrics = compiled(*arguments)
    assert np.isfinite(metrics["loss"])
    assert after.step == 1
    with pytest.raises((TypeError, ValueError)):
        compiled(after, {**arguments[1], "label": arguments[1]["label"][:4]}, arguments[2])


@pytest.mark.medium
def test_the_cost_of_a_small_step(step):
    config, compiled = step
    cost = aot.step_cost(compiled)
    state, batch = state_and_batch(config)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    rows = sum(leaf.nbytes for name, leaf in batch.items() if name != "mask") // 4
    assert whole + rows <= cost.arguments <= whole + rows + 64  # the mask is not used, the key is
    assert cost.aliased == whole  # the state is donated, all of it
    assert 0 < cost.temporaries < 2**26
    assert cost.memory == cost.arguments + (cost.outputs - whole) + cost.temporaries + cost.code
    macs = count_macs(state.net, state.train_variables, config.data.image_size)
    images = config.train.batch_size // 4
    # 2 forward and 4 backward, except at the padding of small maps, which XLA does not count.
    assert 3 < cost.flops / (macs * images) < 7
    gradients = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    statistics = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state.batch_stats))
    count, size = cost.collectives["all-reduce"]
    assert gradients < size <= gradients + statistics + 64
    assert count > 1
    assert not cost.loops


def test_the_table_says_whether_it_fits(step):
    cost = aot.step_cost(step[1])
    count, _ = cost.collectives["all-reduce"]
    text = aot.format_cost(cost, "a title", hbm=2 * cost.memory)
    assert text.startswith("a title\n")
    assert "(50.0%): fits" in text
    assert f"MB in {count}" in text
    assert "DOES NOT FIT" in aot.format_cost(cost, hbm=cost.memory - 1)
    assert "fit" not in aot.format_cost(cost).lower()


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5e", "v5e takes 2 size"),
        ("v5e:4by4", "v5e takes 2 size"),
        ("v5e:0x4", "v5e takes 2 size"),
        ("v5e:2x2x2", "v5e takes 2 size"),
        ("v4:4x4", "v4 takes 3 size"),
        ("v5e:32x32", "a pod of v5e has only 256 chips"),
        ("v9:2x2", "must be v4, v5e, v5p, v6e or cpu"),
        ("", "such as v5e:4x4"),
        ("cpu:4x4", "cpu takes 1 size"),
        ("cpu:64", "--xla_force_host_platform_device_count=64"),
    ],
)
def test_a_topology_that_does_not_exist(topology, message):
    with pytest.raises(UsageError, match=r"--topology=") as caught:
        aot.topology_devices(topology)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_that_the_devices_do_not_divide():
    config = quickstart.get_config()
    config.train.batch_size = 30
    with pytest.raises(UsageError, match="4 devices need a multiple"):
        aot.compile_step(config, aot.topology_devices("cpu:4"))
