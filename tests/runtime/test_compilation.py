"""The cache of compiled programs, and the optimization barrier between blocks."""

import os
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.nets import _chain, _variables, abstract
from repvgg_jax.runtime import compilation
from repvgg_jax.runtime.compilation import (
    FEW_OPTIMIZATIONS,
    StartupTimer,
    barrier,
    cuda_graphs,
    drop_oldest,
    jit_once,
    random_bits_by_kernel,
)
from repvgg_jax.training.evaluation import compiled_step


def test_the_longest_unused_programs_go_first(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    drop_oldest(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_program_that_cannot_be_removed_is_left(tmp_path, monkeypatch):
    unlink = Path.unlink

    def refused(path, **options):
        if path.name == "b":  # as for another user's file
            raise PermissionError("Operation not permitted")
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", refused)
    for age, name in enumerate("abc"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 + age, 1e9 + age))
    drop_oldest(tmp_path, 150)
    assert {path.name for path in tmp_path.iterdir()} == {"b"}


def deep_net(depth, **fields):
    """Returns a net with the given number of identities in its last stage, variables and images."""
    net = rj.create(
        "repvgg_a0", num_classes=4, depths=(1, depth), widths=(4, 8), strides=(1, 1), **fields
    )
    rng = np.random.default_rng(0)
    shapes = abstract(net)
    variables = jax.tree.map(lambda leaf: 1 + 0.1 * rng.normal(size=leaf.shape), shapes)
    variables = jax.tree.map(jnp.float32, variables)
    return net, variables, jax.random.normal(jax.random.key(1), (8, 8, 8, 3))


def deep(depth, **fields):
    """Returns a loss function of that net, with parameters and images for it."""
    net, variables, images = deep_net(depth, **fields)

    def loss(params, images):
        logits, _ = net.apply(variables | {"params": params}, images, True, mutable=["batch_stats"])
        return (logits**2).mean()

    return loss, variables["params"], images


def largest_fusion(compiled):
    """Returns the number of lines of a program's longest fused computation."""
    bodies = re.findall(r"^%?fused_computation\S* .*?^\}", compiled.as_text(), re.M | re.S)
    return max(body.count("\n") for body in bodies)


@pytest.mark.medium
def test_a_fusion_does_not_grow_with_the_depth():
    """Without barriers, each block's gradient recomputes the gradients of all later blocks."""
    sizes = []
    for depth in (3, 6):
        loss, params, images = deep(depth, branch_statistics="batch")
        sizes.append(largest_fusion(jax.jit(jax.grad(loss)).lower(params, images).compile()))
    assert sizes[1] <= sizes[0] + 5, sizes


@pytest.mark.medium
def test_an_evaluations_fusion_does_not_grow_with_the_depth_either():
    sizes = []
    for depth in (3, 6):
        net, variables, images = deep_net(depth)
        batch = {"image": images, "label": jnp.zeros(8, jnp.int32), "mask": jnp.ones(8)}
        mean = (0.0, 0.0, 0.0)
        lowered = compiled_step.lower(net, variables, batch, mean=mean, std=(1.0, 1.0, 1.0))
        sizes.append(largest_fusion(lowered.compile()))
    assert sizes[1] <= sizes[0] + 5, sizes


@pytest.mark.medium
def test_a_residual_nets_fusion_does_not_grow_when_it_is_fused():
    sizes = []
    for pairs in (3, 6):
        fields = dict(depths=(1, 2 * pairs, 1), widths=(4, 4, 8), strides=(1, 1, 1), num_classes=4)
        net = rj.create("residual_reorg_b0", **fields)
        plain, fused = rj.fuse(net, rj.init(net, jax.random.key(0), 8))
        forward = jax.jit(partial(plain.apply, train=False))
        compiled = forward.lower(fused, jnp.zeros((8, 8, 8, 3))).compile()
        sizes.append(largest_fusion(compiled))
    assert sizes[1] <= sizes[0] + 5, sizes


def test_a_fused_net_has_no_barriers():
    net, variables, images = deep_net(3)
    for module, tree in ((net, variables), rj.fuse(net, variables)):
        program = jax.jit(partial(module.apply, train=False)).lower(tree, images).as_text()
        assert ("optimization_barrier" in program) == (module is net)


def test_barriers_change_no_gradient(monkeypatch):
    loss, params, images = deep(3)
    with_barriers = jax.jit(jax.grad(loss))(params, images)
    monkeypatch.setattr(_chain, "barrier", lambda x: x)
    without = jax.jit(jax.grad(lambda *args: loss(*args)))(params, images)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 + 1e-4 * abs(b).max()),
        *jax.device_get((with_barriers, without)),
    )


def test_a_barrier_can_be_differentiated_twice_and_mapped():
    x = jnp.arange(3.0)
    hessian = jax.jit(jax.hessian(lambda x: (barrier(x) ** 3).sum()))(x)
    np.testing.assert_array_equal(hessian, np.diag(6 * x))
    tangent = jax.jvp(barrier, (x,), (2 * x,))[1]
    np.testing.assert_array_equal(tangent, 2 * x)
    np.testing.assert_array_equal(jax.vmap(barrier)(x), x)


def test_options_of_cuda_graphs_are_known_to_xla(monkeypatch):
    started = []
    monkeypatch.setattr(compilation, "_start_cudnn", started.append)
    gpu = SimpleNamespace(platform="gpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    options = cuda_graphs([gpu, gpu])
    assert started == [gpu, gpu]
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_command_buffer=")
    assert cuda_graphs([gpu]) == {}
    assert cuda_graphs(jax.devices()) == {}


def test_cudnn_is_started_by_a_convolution_on_the_given_device(caplog):
    with jax.log_compiles():
        compilation._start_cudnn(jax.devices()[1])
    assert "conv_general_dilated" in caplog.text


def test_a_program_that_runs_once_can_be_transformed(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # which has a level of optimization for tests
    square = jit_once(lambda x: x**2)
    assert square(3.0) == 9
    assert jax.jit(lambda x: square(x) + square(2.0))(3.0) == 13
    assert jax.grad(square)(3.0) == 6
    np.testing.assert_array_equal(jax.vmap(square)(jnp.arange(3.0)), [0, 1, 4])
    assert jax.eval_shape(square, 3.0).shape == ()


def test_a_program_that_runs_once_is_optimized_less_unless_flags_say_how(monkeypatch):
    monkeypatch.setattr(compilation, "FEW_OPTIMIZATIONS", {"xla_no_such_option": 1})
    square = jit_once(lambda x: x**2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        square(3.0)
    assert jax.jit(square)(3.0) == 9
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_option=2")
    assert square(3.0) == 9


def test_initial_weights_for_a_gpu_need_no_code_for_random_bits():
    def lowered():
        bits = jax.jit(lambda key: jax.random.bits(key, (4,))).trace(jax.random.key(0))
        return bits.lower(lowering_platforms=("cuda",)).as_text()

    with random_bits_by_kernel():
        assert "threefry2x32_ffi" in lowered()
    assert "threefry2x32_ffi" not in lowered()


@pytest.mark.medium
def test_initial_weights_do_not_depend_on_optimizations():
    """Runs of a seed start from the same weights, however these are compiled."""
    net = rj.create("repvgg_a0", num_classes=4, depths=(1,), widths=(4,), strides=(2,))
    key, shape = jax.random.key(0), (1, 224, 224, 3)
    default = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    fewer, usual = (
        jax.jit(_variables._fresh.__wrapped__, static_argnums=(0, 2), compiler_options=options)(
            net, key, shape
        )
        for options in (default | FEW_OPTIMIZATIONS, default)
    )
    jax.tree.map(np.testing.assert_array_equal, fewer, usual)


def test_time_in_which_several_programs_are_compiled_counts_once(monkeypatch):
    timer = StartupTimer()
    spans = [(0, 4), (1, 2), (3, 6), (8, 9), (-5, -1)]  # the last one before the timer
    monkeypatch.setattr(
        compilation,
        "_compilations",
        lambda: [
            compilation._Compilation("step", timer.began + start, timer.began + end)
            for start, end in spans
        ],
    )
    timer.stop()
    assert timer.compile_seconds == pytest.approx(7)
    assert timer.compiled() == {"step": pytest.approx(9)}
