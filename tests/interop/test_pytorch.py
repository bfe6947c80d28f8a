"""PyTorch's logits are ours, whoever made the weights; what does not fit is refused by name."""

import os
import pickle
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import repvgg_jax as rj
from configs import quickstart
from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.checkpoint import manager
from repvgg_jax.cli import pytorch
from repvgg_jax.interop.pytorch import from_torch, to_torch
from repvgg_jax.interop.pytorch_files import RELEASED, read_torch, save_torch
from repvgg_jax.training import train

torch = pytest.importorskip("torch", reason="PyTorch is not installed: no other side to compare")
pytest.importorskip("safetensors", reason="safetensors is not installed")
from experiments.reference import torch_repvgg  # noqa: E402
from tests.support.runs import tiny_config  # noqa: E402
from tests.support.variables import randomised  # noqa: E402

TINY = dict(num_classes=5, widths=(16, 16, 24, 24, 32), depths=(1, 2, 1, 3, 2))
TOLERANCE = 1e-5
# PyTorch's RepVGG always has five, of stride 2 each.
FIVE_STAGES = {"depths": (1,) * 5, "widths": (8,) * 5, "strides": (2,) * 5}


def noise_for(net):
    """Numbers of both signs in the net's shapes, no two alike: transfer only moves them."""
    shapes = jax.eval_shape(lambda key: rj.init(net, key, image_size=32), jax.random.key(0))
    draw = np.random.default_rng(1).standard_normal
    return jax.tree.map(lambda leaf: draw(leaf.shape, np.float32), shapes)


def tiny(name="repvgg_a0", **overrides):
    net = rj.create(name, **{**TINY, **overrides})
    return net, noise_for(net)


def images(size=224, batch=1):
    return np.random.default_rng(0).standard_normal((batch, size, size, 3), np.float32)


def ours(net, variables, x):
    with jax.default_matmul_precision("highest"):
        return np.asarray(forward(net, variables, x))


@partial(jax.jit, static_argnums=0)
def forward(net, variables, x):
    return net.apply(variables, x, train=False)


@torch.no_grad()
def theirs(module, x):
    return module.eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()


def relative(expected, got):
    assert np.isfinite(expected).all()
    assert np.std(expected) > 0
    return np.abs(got - expected).max() / np.abs(expected).max()


def tensors(state_dict):
    return {name: torch.from_numpy(array) for name, array in state_dict.items()}


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def timm(torchvision):
    return pytest.importorskip("timm", reason="timm is not installed: the other side is missing")


FEW = dict(depths=(1, 1, 2, 3, 1), widths=(32, 32, 48, 64, 96))
# (model, image size, overrides): full width and depth wherever there is no override.
CASES = [
    ("repvgg_a0", 224, {}),
    ("repvgg_b1g4", 224, FEW),
    ("repvgg_d2se", 224, FEW),
    ("repvgg_plus_l2pse", 224, FEW),
    ("repvgg_b1g4", 224, {}),
    ("repvgg_d2se", 96, {}),
    pytest.param("repvgg_d2se", 224, {}, marks=pytest.mark.slow),
    pytest.param("repvgg_plus_l2pse", 224, {}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "size", "overrides"), CASES)
def test_logits_equal_pytorchs_in_both_forms(name, size, overrides, timm):
    net = rj.create(name, num_classes=10, **overrides)
    twin, x = torch_repvgg.twin_of(net), images(size)
    variables = from_torch(net, twin.state_dict())
    plain, fused = rj.fuse(net, variables)
    logits, fused_logits = ours(net, variables, x), ours(plain, fused, x)
    sides = [(twin, twin.deploy, "official")]
    if not overrides and timm.is_model(name):  # timm has no narrow versions and no RepVGGplus
        model = timm.create_model(name, num_classes=10).eval()
        model.load_state_dict(tensors(to_torch(net, variables, "timm")), strict=True)
        sides.append((model, partial(reparameterized, model), "timm"))

    for model, deploy, layout in sides:
        assert relative(theirs(model, x), logits) < TOLERANCE
        assert_same(from_torch(net, model.state_dict()), variables)
        state_dict = model.state_dict()
        for key, array in to_torch(net, variables, layout).items():
            np.testing.assert_array_equal(array, state_dict[key].numpy())
        deployed = deploy()  # folded by the other side
        got = from_torch(plain, deployed.state_dict())
        assert relative(theirs(deployed, x), ours(plain, got, x)) < TOLERANCE
        deployed.load_state_dict(tensors(to_torch(plain, fused, layout)), strict=True)  # by ours
        assert relative(theirs(deployed, x), fused_logits) < TOLERANCE


def reparameterized(model):
    from timm.utils.model import reparameterize_model

    return reparameterize_model(model, inplace=True)


def test_auxiliary_logits_equal_the_twins_in_training():
    net = rj.create("repvgg_plus_l2pse", **{**TINY, "depths": (1, 1, 1, 3, 1)})
    twin, x = torch_repvgg.twin_of(net), images(64, batch=4)
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


@pytest.mark.parametrize("name", rj.list_models("repvgg*"))
def test_round_trips_are_exact(name):
    net, variables = tiny(name)
    plain = net.clone(block=FusedConv)
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


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: {"module." + name: tensor for name, tensor in sd.items()},
        *[lambda sd, key=key: {key: sd, "epoch": 3} for key in ("state_dict", "model", "ema")],
        lambda sd: {"model_ema": {"state_dict": sd}},
        lambda sd: {"state_dict_ema": {"module." + name: tensor for name, tensor in sd.items()}},
        lambda sd: {k: v for k, v in sd.items() if not k.endswith("num_batches_tracked")},
        lambda sd: {
            k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in sd.items()
        },
    ],
)
def test_prefixes_wrappers_and_counters(wrap):
    net, variables = tiny()
    assert_same(from_torch(net, wrap(tensors(to_torch(net, variables)))), variables)


def test_half_precision_sources_become_float32():
    net, variables = tiny()
    narrow = {k: v.bfloat16() for k, v in tensors(to_torch(net, variables)).items()}
    imported = from_torch(net, narrow)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), variables)
    assert_same(imported, rounded)


def refusal(call, *arguments, **keywords):
    with pytest.raises(rj.UsageError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_strict_import_lists_both_leftovers():
    net, variables = tiny()
    source = to_torch(net, variables)
    source["stage1.7.rbr_dense.conv.weight"] = source.pop("stage1.1.rbr_dense.conv.weight")
    source["linear.bias"] = source["linear.bias"][:3]
    message = refusal(from_torch, net, source)
    assert "1 without a source: stage1.1.rbr_dense.conv.weight" in message
    assert "1 not used: stage1.7.rbr_dense.conv.weight" in message
    assert "1 of wrong shape: linear.bias (3,), not (5,)" in message
    assert "0 " not in message

    deeper = rj.create("repvgg_a0", **{**TINY, "depths": (1, 2, 1, 4, 2)})
    assert "14 without a source: stage3.3.rbr_dense.conv.weight," in refusal(
        from_torch, deeper, to_torch(net, variables)
    )


def test_transposed_kernels_are_refused():
    net, variables = tiny()
    source = to_torch(net, variables)
    source["stage2.0.rbr_dense.conv.weight"] = source["stage2.0.rbr_dense.conv.weight"].T
    assert "(3, 3, 16, 24), not (24, 16, 3, 3)" in refusal(from_torch, net, source)


def test_the_other_form_and_the_other_architecture_are_told():
    net, variables = tiny()
    plain = net.clone(block=FusedConv)
    fused = noise_for(plain)
    for layout in ("official", "timm"):
        assert "clone(block=FusedConv)" in refusal(from_torch, net, to_torch(plain, fused, layout))
        assert "rj.fuse" in refusal(from_torch, plain, to_torch(net, variables, layout))
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
    plain = net.clone(block=FusedConv)
    message = refusal(to_torch, plain, variables)
    assert "params/stage0_block0/conv/kernel" in message
    assert "not used" in message
    wider = rj.create("repvgg_a0", **{**TINY, "num_classes": 6})
    assert "params/head/bias (5,), not (6,)" in refusal(to_torch, wider, variables)


@pytest.mark.parametrize("source", [{}, None, {"state_dict": {}}, {"stage0.x": "text"}])
def test_what_is_no_state_dict(source):
    refusal(from_torch, tiny()[0], source)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
def test_files_round_trip(ending, tmp_path):
    net, variables = tiny("repvgg_d2se")
    save_torch(tmp_path / f"weights{ending}", to_torch(net, variables))
    read = read_torch(tmp_path / f"weights{ending}")
    assert_same(from_torch(net, read), variables)
    counter = "stage0.rbr_dense.bn.num_batches_tracked"
    assert np.asarray(read[counter]).dtype == np.int64
    assert np.asarray(read[counter]).shape == ()
    torch_repvgg.twin_of(net).load_state_dict({k: torch.as_tensor(v) for k, v in read.items()})


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(legacy, tmp_path):
    path, proof = tmp_path / "gift.pth", tmp_path / "was_run"
    torch.save({"state_dict": Malicious(proof)}, path, _use_new_zipfile_serialization=not legacy)
    assert "mkdir" in refusal(read_torch, path)
    assert not proof.exists()
    with path.open("wb") as file:
        pickle.dump(Malicious(proof), file, protocol=2)
    refusal(read_torch, path)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_and_missing_files(name, tmp_path):
    assert "no such file" in refusal(read_torch, tmp_path / name)
    for content in (b"", b"not weights at all"):
        (tmp_path / name).write_bytes(content)
        assert "damaged" in refusal(read_torch, tmp_path / name)
    save_torch(tmp_path / name, to_torch(*tiny()))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(read_torch, tmp_path / name)


def test_endings_and_folders(tmp_path):
    assert ".safetensors" in refusal(read_torch, tmp_path / "a.ckpt")
    assert ".safetensors" in refusal(save_torch, tmp_path / "a.npz", {})
    assert "does not exist" in refusal(save_torch, tmp_path / "no" / "a.pth", {})


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_a_missing_package_is_named(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    path = tmp_path / ("a.pth" if package == "torch" else "a.safetensors")
    assert f"pip install {package}" in refusal(read_torch, path)


def test_released_records_are_of_models_that_exist():
    assert {record.model for record in RELEASED.values()} <= set(rj.list_models())
    assert all(file == record.file for file, record in RELEASED.items())
    assert RELEASED["RepVGG-A0-train.pth"].top1 == 72.41


def test_a_file_becomes_a_run_and_a_file_again(tmp_path):
    config = quickstart.get_config()
    config.model.update(FIVE_STAGES)
    net = rj.create(**config.model.to_dict())
    variables = noise_for(net)
    save_torch(tmp_path / "given.pth", to_torch(net, variables))
    pytorch.run_import(config, tmp_path / "run", str(tmp_path / "given.pth"))
    jax.tree.map(np.testing.assert_array_equal, rj.load(tmp_path / "run")[1], variables)
    for layout in ("official", "timm"):
        path = tmp_path / f"{layout}.safetensors"
        pytorch.run_to_torch(tmp_path / "run", str(path), layout, fused=False)
        got = from_torch(net, read_torch(path))
        jax.tree.map(np.testing.assert_array_equal, got, variables)
    with pytest.raises(rj.UsageError, match="has a checkpoint of step 0"):
        pytorch.run_import(config, tmp_path / "run", str(tmp_path / "given.pth"))


def test_an_imported_run_trains_on_from_its_weights(tmp_path):
    config = tiny_config(train_steps=1, optim_learning_rate=0.0, optim_ema_decay=0.5)
    config.model.update(FIVE_STAGES)
    net = rj.create(**config.model.to_dict())
    shapes = jax.eval_shape(lambda key: rj.init(net, key), jax.random.key(0))
    save_torch(tmp_path / "given.pth", to_torch(net, randomised(shapes, 1)))
    pytorch.run_import(config, tmp_path / "run", str(tmp_path / "given.pth"))
    state = train.train(config, tmp_path / "run").state
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        jax.device_get(state.params),
        jax.device_get(randomised(shapes, 1)["params"]),
    )
    assert manager.steps(tmp_path / "run") == [0, 1]


@pytest.mark.parametrize("overrides", [{"strides": (1, 2, 2, 2, 2)}, {"output_stride": 8}])
def test_strides_that_pytorch_would_not_use_come_in_but_not_out(overrides):
    fields = {"depths": (1,) * 5, "widths": (8, 8, 8, 16, 24), "num_classes": 5}
    as_released, other = (
        rj.create("repvgg_a0", **fields),
        rj.create("repvgg_a0", **fields | overrides),
    )
    variables = noise_for(as_released)
    state_dict = to_torch(as_released, variables)
    jax.tree.map(np.testing.assert_array_equal, from_torch(other, state_dict), variables)
    with pytest.raises(rj.UsageError, match="would compute something else"):
        to_torch(other, variables)


def test_importing_does_not_take_init_from(tmp_path):
    config = tiny_config()
    config.init_from = "runs/other"
    with pytest.raises(rj.UsageError, match=r"drop config\.init_from"):
        pytorch.run_import(config, tmp_path / "run", "given.pth")
