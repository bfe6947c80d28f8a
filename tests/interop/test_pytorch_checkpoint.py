"""State dicts are found in checkpoints by what they hold, and freed of wrappers' prefixes."""

import logging

import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.interop.pytorch import from_torch
from repvgg_jax.interop.pytorch_checkpoint import find_state_dict, state_dicts, without_wrappers

OURS = {"stage0.rbr_dense.conv.weight": np.ones((2, 3, 3, 3)), "linear.bias": np.ones(2)}
AVERAGE = {name: 2 * value for name, value in OURS.items()}
OPTIMIZER = {"state": {0: {"momentum_buffer": np.ones((2, 3, 3, 3))}}, "param_groups": [{"lr": 1}]}


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_the_usual_entries_are_taken_silently(key, caplog):
    checkpoint = {"epoch": 3, "optimizer": OPTIMIZER, key: OURS, "metrics": {"top1": np.ones(3)}}
    assert find_state_dict(checkpoint) is OURS
    assert find_state_dict(OURS) is OURS
    assert not caplog.messages


@pytest.mark.parametrize("key", ["model_state_dict", "net", "weights", "ema", "student"])
def test_an_only_entry_of_any_name_is_taken_and_named(key, caplog):
    assert find_state_dict({"epoch": 3, "optimizer": OPTIMIZER, key: OURS}) is OURS
    assert find_state_dict({key: {"state_dict": OURS, "decay": 0.9}}) is OURS
    messages = [record.getMessage().split()[-1] for record in caplog.records]
    assert messages == [key, f"{key}.state_dict"]


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema_state_dict", "swa_model"])
def test_the_average_is_taken_only_on_request_and_both_are_named(key, caplog):
    with caplog.at_level(logging.WARNING):
        assert find_state_dict({key: AVERAGE, "state_dict": OURS}) is OURS
    (message,) = caplog.messages
    assert f"{key}, state_dict; took state_dict; to take the others" in message
    assert message.endswith(f"--weights FILE:{key}")


def test_several_models_are_listed():
    checkpoint = {"student": OURS, "teacher": AVERAGE, "model_ema": {"state_dict": AVERAGE}}
    with pytest.raises(rj.UsageError, match=r"student, teacher, model_ema\.state_dict; choose"):
        find_state_dict(checkpoint)
    assert state_dicts(checkpoint)["model_ema.state_dict"] is AVERAGE


@pytest.mark.parametrize("source", [{}, None, [OURS], {"state_dict": {}}, {"epoch": 3}])
def test_what_has_no_weights_is_refused(source):
    with pytest.raises(rj.UsageError, match=r"not a state dict|no weights in the checkpoint"):
        find_state_dict(source)


PREFIXES = [
    "module.", "_orig_mod.", "model.", "net.", "backbone.", "module.module.",
    "model._orig_mod.", "module.model.backbone.",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("names", [OURS, {"stem.conv_kxk.conv.weight": 1, "head.fc.bias": 2}])
def test_prefixes_of_all_names_are_removed(prefix, names):
    wrapped = {prefix + name: value for name, value in names.items()}
    assert without_wrappers(wrapped) == names
    counters = {f"{prefix}stage0.rbr_dense.bn.num_batches_tracked": 3}
    assert without_wrappers({"n_averaged": 5} | wrapped | counters) == names


@pytest.mark.parametrize(
    "names",
    [
        ["stage0.rbr_dense.conv.weight", "stage0.rbr_dense.bn.bias"],  # a part of a net
        ["model.linear.bias", "loss.weight"],
        ["modules", "modulesque.bias"],
        ["n_averaged"],
    ],
)
def test_other_names_stay(names):
    assert list(without_wrappers(dict.fromkeys(names))) == names


def test_nothing_is_left_of_counters():
    assert without_wrappers({"bn.num_batches_tracked": 3}) == {}


@pytest.mark.medium
def test_names_that_pytorchs_own_wrappers_give():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from experiments.reference import torch_repvgg
    from tests.support.torch_weights import assert_same, tiny

    net, _ = tiny()
    twin = torch_repvgg.twin_of(net)
    expected = from_torch(net, twin.state_dict())
    averaged = torch.optim.swa_utils.AveragedModel
    for wrapped in (
        torch.nn.DataParallel(twin),
        torch.compile(twin),
        averaged(twin, use_buffers=True),
        averaged(torch.compile(torch.nn.DataParallel(twin))),
    ):
        assert set(wrapped.state_dict()).isdisjoint(twin.state_dict())
        assert_same(from_torch(net, wrapped.state_dict()), expected)
