"""Deep plain nets: properties of their initialization, and the max-norm constraint."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import repvgg_jax as rj
from configs import deep_plain
from repvgg_jax.bench.counting import count_macs
from repvgg_jax.cli import train
from repvgg_jax.nets import abstract
from repvgg_jax.nets.deep_plain import grid_means
from repvgg_jax.ops.convolution import convolve, convolve_by_matmul
from repvgg_jax.optim import sgd
from repvgg_jax.training.metrics import read_metrics
from tests.support.variables import random_images


def input_gradient_norms(initializer, depth, seeds=3):
    """Returns the norms of the images' gradients of one image's logits, through `depth` layers."""
    net = rj.create("deep_plain", num_classes=10, depth=depth, width=16, initializer=initializer)
    x = random_images(2, 8, 8, 3)

    def norm(key):
        variables = net.init(key, x)
        gradient = jax.grad(lambda x: net.apply(variables, x)[0].sum())(x)
        return jnp.linalg.norm(gradient)

    return np.array([jax.jit(norm)(jax.random.key(seed)) for seed in range(seeds)])


@pytest.mark.medium
def test_delta_orthogonal_kernels_keep_gradients_alive_and_the_default_does_not():
    shallow, deep = (input_gradient_norms("delta_orthogonal", depth) for depth in (10, 300))
    assert (deep > 0.05 * shallow).all()
    assert (input_gradient_norms("default", 300) < 1e-12 * shallow).all()


def test_a_product_of_patches_is_the_convolution():
    with jax.enable_x64(True):
        x, kernel = (
            random_images(*shape, dtype="float64") for shape in ((2, 5, 4, 3), (3, 3, 3, 7))
        )
        expected = convolve(x, kernel, dtype=jnp.float64)
        got = convolve_by_matmul(x, kernel, dtype=jnp.float64)
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_the_program_does_not_grow_with_depth():
    def program(depth):
        net = rj.create("deep_plain", depth=depth, width=8)
        shapes = abstract(net)
        x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        return net, shapes, len(jax.jit(net.apply).lower(shapes, x).as_text())

    (_, _, short), (net, shapes, long) = program(10), program(10_000)
    assert long < 1.05 * short
    assert count_macs(net, shapes, 8) > 10_000 * 16 * 9 * 8 * 8


def test_cells_of_the_grid_cover_the_map():
    x = random_images(1, 5, 8, 2)
    cells = grid_means(x, 4).reshape(4, 4, 2)
    np.testing.assert_allclose(cells[1, 2], x[0, 1:3, 4:6].mean((0, 1)), rtol=1e-5, atol=1e-6)
    assert grid_means(x[:, :1, :1], 4).shape == (1, 32)


def test_max_norm_holds_every_filter_and_nothing_else():
    params = {"layers": {"kernel": random_images(2, 3, 3, 4, 5), "bias": np.ones(5, np.float32)}}
    tx = optax.chain(sgd.sgd(lambda step: 0.5), sgd.max_norm(2.0))
    gradient = jax.tree.map(lambda leaf: -leaf, params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    norms = jnp.sqrt((moved["layers"]["kernel"] ** 2).sum((-4, -3, -2)))
    np.testing.assert_allclose(norms, 2.0, rtol=1e-5)  # all were longer before
    free = sgd.sgd(lambda step: 0.5).update(gradient, tx.init(params)[0], params)[0]
    np.testing.assert_array_equal(updates["layers"]["bias"], free["layers"]["bias"])
    nothing = jax.tree.map(jnp.zeros_like, params)
    held, _ = sgd.max_norm(2.0, ["layers"]).update(nothing, optax.EmptyState(), params)
    assert not any(map(np.any, jax.tree.leaves(held)))


@pytest.mark.parametrize(
    "overrides", [{"activation": "gelu"}, {"initializer": "zeros"}, {"depth": 0}]
)
def test_what_cannot_be_built_is_refused(overrides):
    with pytest.raises(rj.UsageError, match=next(iter(overrides))):
        rj.create("deep_plain", **overrides)


@pytest.mark.medium
def test_a_deep_plain_run_goes_all_the_way(tmp_path):
    config = deep_plain.get_config("leaky_relu")
    config.model.update(depth=6, width=8)
    config.train.update(steps=4, eval_every=4, log_every=1)
    config.optim.warmup_epochs = 0.0
    train.run_train(config, tmp_path / "run")
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")][-1] == 4
    assert rj.load(tmp_path / "run", fused=True)[0] == rj.load(tmp_path / "run")[0]
