"""`--mode=import` and `--mode=to_torch`."""

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from configs import quickstart
from repvgg_jax.checkpoint import manager
from repvgg_jax.cli import pytorch
from repvgg_jax.config.build import build, make_net
from repvgg_jax.interop.pytorch import from_torch, to_torch
from repvgg_jax.interop.pytorch_files import read_torch, save_torch
from repvgg_jax.nets import abstract
from repvgg_jax.training.state import fresh_state
from repvgg_jax.training.transfer import start_from_run
from tests.support.runs import equal, tiny_config, train
from tests.support.variables import randomised

torch = pytest.importorskip("torch", reason="PyTorch is not installed: no other side to compare")
pytest.importorskip("safetensors", reason="safetensors is not installed")
from tests.support.torch_weights import noise_for  # noqa: E402

# PyTorch's RepVGG always has five, of stride 2 each.
FIVE_STAGES = {"depths": (1,) * 5, "widths": (8,) * 5, "strides": (2,) * 5}


@pytest.mark.medium
def test_a_file_becomes_a_run_and_a_file_again(tmp_path, monkeypatch, capsys):
    config = quickstart.get_config()
    config.model.update(FIVE_STAGES)
    net = rj.create(**config.model.to_dict())
    variables = noise_for(net)
    save_torch(tmp_path / "given.pth", to_torch(net, variables))
    pytorch.run_import(config, tmp_path / "run", str(tmp_path / "given.pth"))
    jax.tree.map(np.testing.assert_array_equal, rj.load(tmp_path / "run")[1], variables)
    for layout in ("official", "timm"):
        path = tmp_path / "written.safetensors"
        pytorch.run_to_torch(tmp_path / "run", str(path), layout, fused=False)
        assert ("earlier file" in capsys.readouterr().out) == (layout == "timm")
        got = from_torch(net, read_torch(path))
        jax.tree.map(np.testing.assert_array_equal, got, variables)
    with pytest.raises(rj.UsageError, match="has a checkpoint of step 0"):
        pytorch.run_import(config, tmp_path / "run", str(tmp_path / "given.pth"))
    monkeypatch.setattr(pytorch, "primary", lambda: False)  # as in the other processes of a run
    pytorch.run_to_torch(tmp_path / "run", str(tmp_path / "other.pth"), "official", fused=False)
    assert not (tmp_path / "other.pth").exists()


@pytest.mark.medium
def test_an_imported_run_trains_on_from_its_weights(tmp_path):
    config = tiny_config(train_steps=1, optim_learning_rate=0.0, optim_ema_decay=0.5)
    config.model.update(FIVE_STAGES)
    net = rj.create(**config.model.to_dict())
    shapes = abstract(net)
    save_torch(tmp_path / "given.pth", to_torch(net, randomised(shapes, 1)))
    pytorch.run_import(config, tmp_path / "run", str(tmp_path / "given.pth"))
    state = train(config, tmp_path / "run").state
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        jax.device_get(state.params),
        jax.device_get(randomised(shapes, 1)["params"]),
    )
    assert manager.steps(tmp_path / "run") == [0, 1]


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ({"strides": (1, 2, 2, 2, 2)}, r"strides=\(1,2,2,2,2\): .*model\.strides=\(2,2,2,2,2\)"),
        ({"output_stride": 8}, "output_stride=8: .*train without it"),
    ],
    ids=str,
)
def test_strides_that_pytorch_would_not_use_come_in_but_not_out(overrides, remedy):
    fields = {"depths": (1,) * 5, "widths": (8, 8, 8, 16, 24), "num_classes": 5}
    as_released, other = (
        rj.create("repvgg_a0", **fields),
        rj.create("repvgg_a0", **fields | overrides),
    )
    variables = noise_for(as_released)
    state_dict = to_torch(as_released, variables)
    jax.tree.map(np.testing.assert_array_equal, from_torch(other, state_dict), variables)
    with pytest.raises(rj.UsageError, match=f"{remedy}; docs/guides/pytorch_weights.md"):
        to_torch(other, variables)
    few = make_net(quickstart.get_config())
    with pytest.raises(rj.UsageError, match=r"depths=\(1,2,3,1\): .* train with five, such as"):
        to_torch(few, noise_for(few))
    with pytest.raises(rj.UsageError, match=r"depths=\(1,2,3,1\): .* as in configs/a0\.py"):
        from_torch(few, state_dict)


def test_importing_does_not_take_init_from(tmp_path):
    config = tiny_config()
    config.init_from = "runs/other"
    with pytest.raises(rj.UsageError, match=r"unset config\.init_from"):
        pytorch.run_import(config, tmp_path / "run", "given.pth")


@pytest.mark.medium
def test_an_import_takes_its_outputs_to_be_the_classes_of_the_data(tmp_path):
    config = quickstart.get_config()
    config.model.update(FIVE_STAGES)
    net = rj.create(**config.model.to_dict())
    save_torch(tmp_path / "given.pth", to_torch(net, noise_for(net)))
    pytorch.run_import(config, tmp_path / "run", str(tmp_path / "given.pth"))
    assert rj.class_names(tmp_path / "run") == tuple("0123456789")
    config.data.update(source="folder", data_dir=str(tmp_path / "missing"))
    pytorch.run_import(config, tmp_path / "other", str(tmp_path / "given.pth"))
    assert rj.class_names(tmp_path / "other") is None


@pytest.mark.medium
def test_weights_of_other_classes_become_the_start_of_a_run(tmp_path):
    config = tiny_config()
    config.model.update(FIVE_STAGES)
    experiment = build(config, open_data=False)
    weights = str(tmp_path / "given.pth")
    other = experiment.net.clone(num_classes=17)
    save_torch(weights, to_torch(other, noise_for(other)))
    with pytest.raises(rj.UsageError, match=r"num_classes=17 .* config\.init_from"):
        pytorch.run_import(config, tmp_path / "run", weights)
    assert not (tmp_path / "run").exists()
    config.model.num_classes = 17
    pytorch.run_import(config, tmp_path / "run", weights)
    assert rj.class_names(tmp_path / "run") is None
    fresh = fresh_state(experiment)
    state = start_from_run(fresh, str(tmp_path / "run"), "0123456789")
    equal(state.params["head"], fresh.params["head"])
    with pytest.raises(rj.UsageError, match=r"init_head=keep: .* another number of classes"):
        start_from_run(fresh, str(tmp_path / "run"), "0123456789", "keep")
    block = "stage1_block0"
    equal(state.params[block], rj.load(tmp_path / "run")[1]["params"][block])
