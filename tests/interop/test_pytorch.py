"""Logits equal PyTorch's in both directions; errors name weights that do not match."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import repvgg_jax as rj
from experiments.reference.rounding import agree, errors
from repvgg_jax.interop.pytorch import from_torch, to_torch

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
from experiments.reference import torch_repvgg  # noqa: E402
from experiments.reference.torch_models import random_images, randomize  # noqa: E402
from tests.support.torch_weights import TINY, assert_same, noise_for, refusal, tensors, tiny  # noqa: E402


def ours(net, variables, x):
    with jax.default_matmul_precision("highest"):
        return np.asarray(forward(net, variables, x))


@partial(jax.jit, static_argnums=0)
def forward(net, variables, x):
    return net.apply(variables, x, train=False)


def relative(expected, got):
    assert np.isfinite(expected).all()
    assert np.std(expected) > 0
    return np.abs(got - expected).max() / np.abs(expected).max()


FEW = dict(depths=(1, 1, 2, 3, 1), widths=(32, 32, 48, 64, 96))
# (model, image size, overrides); full width and depth without overrides.
CASES = [
    ("repvgg_a0", 64, {}),
    ("repvgg_b1g4", 64, FEW),
    ("repvgg_d2se", 64, FEW),
    ("repvgg_plus_l2pse", 64, FEW),
    pytest.param("repvgg_a0", 224, {}, marks=pytest.mark.slow),
    pytest.param("repvgg_b1g4", 224, {}, marks=pytest.mark.slow),
    pytest.param("repvgg_d2se", 96, {}, marks=pytest.mark.slow),
    pytest.param("repvgg_d2se", 224, {}, marks=pytest.mark.slow),
    pytest.param("repvgg_plus_l2pse", 224, {}, marks=pytest.mark.slow),
]


@pytest.mark.medium
@pytest.mark.parametrize(("name", "size", "overrides"), CASES)
def test_logits_equal_pytorchs_in_both_forms(name, size, overrides, timm):
    net = rj.create(name, num_classes=10, **overrides)
    twin, x = torch_repvgg.twin_of(net), random_images(2, size)
    randomize(twin, x)
    variables = from_torch(net, twin.state_dict())
    plain, fused = rj.fuse(net, variables)
    logits, fused_logits = ours(net, variables, x), ours(plain, fused, x)
    sides = [(twin, twin.deploy, "official")]
    if not overrides and timm.is_model(name):  # timm has no narrow versions and no RepVGGplus
        model = timm.create_model(name, num_classes=10).eval()
        model.load_state_dict(tensors(to_torch(net, variables, "timm")), strict=True)
        sides.append((model, partial(reparameterized, model), "timm"))

    for model, deploy, layout in sides:
        assert agree(*errors(model, x, logits))
        assert_same(from_torch(net, model.state_dict()), variables)
        state_dict = model.state_dict()
        for key, array in to_torch(net, variables, layout).items():
            np.testing.assert_array_equal(array, state_dict[key].numpy())
        deployed = deploy()  # fused by PyTorch
        got = from_torch(plain, deployed.state_dict())
        assert agree(*errors(deployed, x, ours(plain, got, x)))
        deployed.load_state_dict(tensors(to_torch(plain, fused, layout)), strict=True)  # fused here
        assert agree(*errors(deployed, x, fused_logits))


def reparameterized(model):
    from timm.utils.model import reparameterize_model

    return reparameterize_model(model, inplace=True)


@pytest.mark.medium
def test_auxiliary_logits_equal_the_twins_in_training():
    net = rj.create("repvgg_plus_l2pse", **{**TINY, "depths": (1, 1, 1, 3, 1)})
    twin, x = torch_repvgg.twin_of(net), random_images(4, 64)
    variables = from_torch(net, twin.state_dict())

    @jax.jit
    def train(variables, x):
        heads = {}

        def keep(call, args, kwargs, context):
            heads[context.module.name] = call(*args, **kwargs)
            return heads[context.module.name]

        with nn.intercept_methods(keep), jax.default_matmul_precision("highest"):
            logits, _ = net.apply(variables, x, train=True, mutable=["batch_stats"])
        return logits, {name: heads[name] for name in net.auxiliary_heads().values()}

    logits, heads = train(variables, x)
    with torch.no_grad():
        expected, auxiliary = twin.train()(torch.from_numpy(x).permute(0, 3, 1, 2))
    assert relative(expected.numpy(), logits) < 1e-4
    names = {"stage1": "aux_stage1", "stage2": "aux_stage2", "stage3_first": "aux_stage3"}
    for theirs_, ours_ in names.items():
        assert relative(auxiliary[theirs_].numpy(), heads[ours_]) < 1e-4


@pytest.mark.medium
@pytest.mark.parametrize("name", rj.list_models("repvgg*"))
def test_round_trips_are_exact(name):
    net, variables = tiny(name)
    plain = net.clone(block="fused")
    fused = noise_for(plain)
    for layout in ("official", "timm") if "plus" not in name else ("official",):
        for pair in ((net, variables), (plain, fused)):
            exported = to_torch(*pair, layout)
            assert all(a.flags.c_contiguous and a.flags.writeable for a in exported.values())
            assert_same(from_torch(pair[0], exported), pair[1])


def test_import_does_not_share_memory_with_the_source():
    net, variables = tiny()
    source = to_torch(net, variables)
    imported = from_torch(net, tensors(source))
    for array in source.values():
        array[...] = 0
    assert_same(imported, variables)


def test_parameters_counters_and_an_entry_of_a_checkpoint():
    net, variables = tiny()
    state_dict = tensors(to_torch(net, variables))
    floating = {k: torch.nn.Parameter(v) for k, v in state_dict.items() if v.is_floating_point()}
    assert_same(from_torch(net, floating), variables)  # without counters
    checkpoint = {"model_state_dict": {f"module.{k}": v for k, v in state_dict.items()}}
    assert_same(from_torch(net, checkpoint), variables)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sources_become_float32_exactly(dtype):
    net, variables = tiny()
    narrow = {k: v.to(dtype) for k, v in tensors(to_torch(net, variables)).items()}
    imported = from_torch(net, narrow)
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(str(dtype).removeprefix("torch.")).astype(jnp.float32), variables
    )
    assert_same(imported, rounded)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(5, dtype=torch.int8), "Tensor torch.int8"),
        (torch.ones(5, dtype=torch.complex64), "Tensor torch.complex64"),
        (torch.ones(5).to_sparse(), "Tensor torch.float32"),
        (torch.ones(5, device="meta"), "Tensor torch.float32"),
        (np.arange(5), "ndarray int64"),
        ("text", "str"),
    ],
)
def test_tensors_of_other_kinds_are_named(tensor, kind):
    net, variables = tiny()
    source = to_torch(net, variables) | {"linear.bias": tensor}
    message = refusal(from_torch, net, source)
    assert message == f"linear.bias: expected a dense floating-point tensor, got {kind}"


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_the_first_tensor_that_is_not_finite_is_named(value):
    net, variables = tiny()
    source = to_torch(net, variables)
    names = ["stage2.0.rbr_1x1.bn.running_var", "linear.weight"]
    for name in names:
        source[name] = source[name].astype(np.float64)
        source[name].flat[1:3] = value
    message = refusal(from_torch, net, source)
    assert "2 of " in message
    assert f"the first is {names[0]} (2 of 24 values)" in message


@pytest.mark.parametrize("layout", ["official", "timm"])
def test_a_head_of_another_size_leads_to_init_from(layout):
    net, variables = tiny()
    other = net.clone(num_classes=7)
    message = refusal(from_torch, other, to_torch(net, variables, layout))
    assert "the weights have 5 classes and the net has 7; import them with num_classes=5" in message
    assert "config.init_from" in message


def test_auxiliary_heads_may_differ_too_but_nothing_else():
    net, variables = tiny("repvgg_plus_l2pse")
    source, other = to_torch(net, variables), net.clone(num_classes=7)
    assert "config.init_from" in refusal(from_torch, other, source)
    source["stage2.blocks.0.rbr_1x1.bn.bias"] = np.ones(3, np.float32)
    assert "of wrong shape" in refusal(from_torch, other, source)


def test_strict_import_lists_both_leftovers():
    net, variables = tiny()
    source = to_torch(net, variables)
    source["stage1.7.rbr_dense.conv.weight"] = source.pop("stage1.1.rbr_dense.conv.weight")
    source["linear.bias"] = source["linear.bias"][:3]
    message = refusal(from_torch, net, source)
    assert "1 missing: stage1.1.rbr_dense.conv.weight" in message
    assert "1 unexpected: stage1.7.rbr_dense.conv.weight" in message
    assert "1 of wrong shape: linear.bias (3,), not (5,)" in message
    assert "0 " not in message

    deeper = rj.create("repvgg_a0", **{**TINY, "depths": (1, 2, 1, 4, 2)})
    assert "14 missing: stage3.3.rbr_dense.conv.weight," in refusal(
        from_torch, deeper, to_torch(net, variables)
    )


def test_transposed_kernels_are_refused():
    net, variables = tiny()
    source = to_torch(net, variables)
    source["stage2.0.rbr_dense.conv.weight"] = source["stage2.0.rbr_dense.conv.weight"].T
    assert "(3, 3, 16, 24), not (24, 16, 3, 3)" in refusal(from_torch, net, source)


def test_the_other_form_and_the_other_architecture_are_refused():
    net, variables = tiny()
    plain = net.clone(block="fused")
    fused = noise_for(plain)
    for layout in ("official", "timm"):
        assert "clone(block='fused')" in refusal(from_torch, net, to_torch(plain, fused, layout))
        assert "then call fuse" in refusal(from_torch, plain, to_torch(net, variables, layout))
    plus, plus_variables = tiny("repvgg_plus_l2pse")
    assert "RepVGGplus" in refusal(from_torch, net, to_torch(plus, plus_variables))
    assert "RepVGGplus" in refusal(from_torch, plus, to_torch(net, variables))
    assert "layout='official'" in refusal(to_torch, plus, plus_variables, "timm")
    assert "choose from" in refusal(to_torch, net, variables, "keras")


@pytest.mark.parametrize("overrides", [dict(block="plain"), dict(kernel_size=5)])
def test_blocks_without_counterpart(overrides):
    net, variables = tiny(**overrides)
    assert "no counterpart" in refusal(to_torch, net, variables)
    assert "no counterpart" in refusal(from_torch, net, {"stage0.x": np.zeros(3, np.float32)})


def test_export_is_strict():
    net, variables = tiny()
    plain = net.clone(block="fused")
    message = refusal(to_torch, plain, variables)
    assert "params/stage0_block0/conv/kernel" in message
    assert "unexpected" in message
    wider = rj.create("repvgg_a0", **{**TINY, "num_classes": 6})
    assert "params/head/bias (5,), not (6,)" in refusal(to_torch, wider, variables)
    other = net.clone(bn_epsilon=1e-3)
    assert "export the fused form" in refusal(to_torch, other, variables)
