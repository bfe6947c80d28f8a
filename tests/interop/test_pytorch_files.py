"""Files of PyTorch weights are read without running code; damaged files cause an error."""

import gzip
import os
import pickle
import sys
from argparse import Namespace

import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.interop.pytorch import from_torch, to_torch
from repvgg_jax.interop.pytorch_files import RELEASED, read_torch, save_torch

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
from experiments.reference import torch_repvgg  # noqa: E402
from tests.support.torch_weights import assert_same, refusal, tensors, tiny  # noqa: E402


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
    path = tmp_path / name
    assert "no such file" in refusal(read_torch, path)
    save_torch(path, to_torch(*tiny()))
    whole = path.read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "damaged" in refusal(read_torch, path)


def test_a_torn_file_of_old_pytorch_is_damaged(tmp_path):
    torch.save(tensors(to_torch(*tiny())), tmp_path / "a", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a").read_bytes()
    for size in (20, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a").write_bytes(whole[:size])
        message = refusal(read_torch, tmp_path / "a")
        assert "damaged" in message
        assert "weights_only" not in message


@pytest.mark.parametrize("legacy", [False, True])
def test_the_content_counts_and_not_the_extension(legacy, tmp_path):
    weights = {"linear.bias": np.ones(3, np.float32)}
    for name in ("a.pth.tar", "a.bin", "a.ckpt", "a.PTH", "a", "a.safetensors", "b:c.pth"):
        path = tmp_path / name
        torch.save(tensors(weights), path, _use_new_zipfile_serialization=not legacy)
        np.testing.assert_array_equal(read_torch(path)["linear.bias"], weights["linear.bias"])
    save_torch(tmp_path / "a.safetensors", weights)
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert_same(read_torch(tmp_path / "a.bin"), weights)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not weights at all", "starts with b'not weights at a'"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
        (gzip.compress(b"weights", mtime=0), "is an archive"),
        (b"a.pth".ljust(257, b"\0") + b"ustar\x0000", "is an archive"),
        (pickle.dumps({"linear.bias": np.ones(3)}), "torch.save did not write"),
        (b"\0" * 1000, "damaged, or not a file of weights"),
    ],
)
def test_contents_that_are_no_weights_are_recognized(content, message, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    assert message in refusal(read_torch, tmp_path / "a.pth")
    assert "is a folder" in refusal(read_torch, tmp_path)


def test_zip_archives_of_others_are_recognized(tmp_path):
    torch.jit.script(torch.nn.Linear(3, 2)).save(tmp_path / "program.pt")
    assert "torch.jit.load(path).state_dict()" in refusal(read_torch, tmp_path / "program.pt")
    np.savez(tmp_path / "arrays.npz", weight=np.ones(3))
    assert "with weight.npy in it" in refusal(read_torch, tmp_path / "arrays.npz")


def test_arguments_of_a_training_script_are_read_and_a_whole_module_is_not(tmp_path):
    weights = {"linear.bias": torch.ones(3)}
    torch.save({"state_dict": weights, "args": Namespace(lr=0.1)}, tmp_path / "a.pth")
    assert read_torch(tmp_path / "a.pth")["args"].lr == 0.1
    torch.save(torch.nn.Linear(3, 2), tmp_path / "a.pth")
    message = refusal(read_torch, tmp_path / "a.pth")
    assert "would run torch.nn.modules.linear.Linear; if you trust" in message


def test_tensors_of_a_gpu_are_read_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save({"linear.bias": torch.ones(3)}, tmp_path / "a.pth")
    assert read_torch(tmp_path / "a.pth")["linear.bias"].device.type == "cpu"


def test_bfloat16_of_safetensors_is_exact(tmp_path):
    net, variables = tiny()
    narrow = {k: v.bfloat16() for k, v in tensors(to_torch(net, variables)).items()}
    safetensors_torch.save_file(narrow, tmp_path / "a.safetensors")
    assert_same(from_torch(net, read_torch(tmp_path / "a.safetensors")), from_torch(net, narrow))


def test_an_entry_is_named_after_a_colon(tmp_path):
    first, second = ({"stage0.weight": torch.full((2, 3, 3, 3), n)} for n in (1.0, 2.0))
    for name in ("a.pth", "a:b.pth"):
        path = tmp_path / name
        torch.save({"state_dict": first, "model_ema": {"module": second}}, path)
        assert_same(read_torch(f"{path}:model_ema.module"), second)
        assert_same(read_torch(f"{path}:state_dict"), first)
        message = refusal(read_torch, f"{path}:ema")
        assert message.endswith("an entry 'ema'; it has state_dict, model_ema.module")
    save_torch(tmp_path / "a.safetensors", {"stage0.weight": first["stage0.weight"].numpy()})
    assert "an entry 'ema'" in refusal(read_torch, f"{tmp_path}/a.safetensors:ema")
    for missing in ("no.pth:ema", r"C:\a.pth"):
        assert "no such file" in refusal(read_torch, missing)


def test_extensions_and_folders_of_files_to_write(tmp_path):
    assert ".pth, .pt or .safetensors" in refusal(save_torch, tmp_path / "a.npz", {})
    assert "does not exist" in refusal(save_torch, tmp_path / "no" / "a.pth", {})


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_a_missing_package_is_named(package, monkeypatch, tmp_path):
    path = tmp_path / ("a.pth" if package == "torch" else "a.safetensors")
    save_torch(path, {"linear.bias": np.ones(3)})
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert f"pip install {package}" in refusal(read_torch, path)
    assert f"pip install {package}" in refusal(save_torch, path, {})


def test_released_records_are_of_models_that_exist():
    assert {record.model for record in RELEASED.values()} <= set(rj.list_models())
    assert all(file == record.file for file, record in RELEASED.items())
    assert RELEASED["RepVGG-A0-train.pth"].top1 == 72.41


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "weights.pth").mkdir()
    with pytest.raises(rj.UsageError, match=r"cannot write \S+weights\.pth \("):
        save_torch(tmp_path / "weights.pth", {"a": np.zeros(1, np.float32)})
