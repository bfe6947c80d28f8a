"""Files of PyTorch weights are read without running code; damaged files cause an error."""

import os
import pickle
import sys

import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.interop.pytorch import from_torch, to_torch
from repvgg_jax.interop.pytorch_files import RELEASED, read_torch, save_torch

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
from experiments.reference import torch_repvgg  # noqa: E402
from tests.support.torch_weights import assert_same, refusal, tiny  # noqa: E402


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
