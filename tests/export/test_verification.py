"""Exported files are kept only if they compute what the net computes."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.errors import RunError
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.verification import check_extension, import_package, prepare
from tests.support.onnx_models import Function
from tests.support.variables import random_variables

TRAIN_FORM = rj.create("repvgg_a0", num_classes=3, depths=(1,), widths=(4,), strides=(2,))
NET = TRAIN_FORM.clone(block="fused")
METADATA = Metadata(image_size=8)


def prepared(path, net=NET, metadata=METADATA, images=None, allow_train_form=False):
    return prepare(net, random_variables(net, 0), path, metadata, images, allow_train_form)


def save(path, metadata):
    path.write_text(json.dumps(metadata.to_strings()))


def scaled(source, by, path):
    return lambda images: by * np.asarray(source(source.variables, images))


def unreadable(path):
    raise RuntimeError("no such operator")


@pytest.mark.medium
def test_only_a_file_that_computes_the_same_is_kept(tmp_path):
    source, path = prepared(tmp_path / "model.json")
    with pytest.raises(
        RunError, match=r"was not written: .* error of 1.0e-03; the limit is 0.0001"
    ):
        source.write(path, save, partial(scaled, source, 1.001))
    with pytest.raises(RunError, match="error of nan"):
        source.write(path, save, partial(scaled, source, np.nan))
    with pytest.raises(RunError, match=r"was not written: it cannot be run .*no such operator"):
        source.write(path, save, unreadable)
    assert not list(tmp_path.iterdir())
    written = source.write(path, save, partial(scaled, source, 1.00001))
    assert written.export_error == pytest.approx(1e-5, rel=0.1)
    assert Metadata.from_strings(json.loads(path.read_text()), str(path)) == written
    assert [file.name for file in tmp_path.iterdir()] == ["model.json"]


@pytest.mark.medium
@pytest.mark.parametrize("amplifies", [True, False])
def test_an_error_says_if_the_net_amplifies_rounding_errors(amplifies, tmp_path):
    source, path = prepared(tmp_path / "model.json")
    factor = 1e6 if amplifies else 1.0

    def apply(variables, images):
        logits = NET.apply(variables, images)
        return jax.numpy.sin(factor * logits)

    source = dataclasses.replace(source, net=Function(apply, 3))
    with pytest.raises(RunError, match="relative error of") as caught:
        source.write(path, save, partial(scaled, source, 1.001))
    assert ("the net amplifies rounding errors" in str(caught.value)) == amplifies


@pytest.mark.medium
def test_logits_that_do_not_depend_on_the_image_are_named(tmp_path, caplog):
    source, path = prepared(tmp_path / "model.json")
    source.write(path, save, partial(scaled, source, 1.0))
    assert caplog.text == ""
    head = source.variables["params"]["head"]
    head = head | {"kernel": 1e-5 * head["kernel"]}
    small = {"params": source.variables["params"] | {"head": head}}
    source = dataclasses.replace(source, variables=small)
    source.write(path, save, partial(scaled, source, 1.0))
    assert "the logits of the net are nearly the same for all images" in caplog.text


@pytest.mark.medium
def test_logits_of_zero_verify_nothing(tmp_path):
    source, path = prepared(tmp_path / "model.json")
    zeros = jax.tree.map(np.zeros_like, source.variables)
    source = dataclasses.replace(source, variables=zeros)
    with pytest.raises(rj.UsageError, match="logits of the net are all zero, or not finite"):
        source.write(path, save, partial(scaled, source, 1.0))
    with pytest.raises(rj.UsageError, match="logits of the net are all zero, or not finite"):
        source.check_larger(partial(source, zeros))


@pytest.mark.medium
def test_an_image_may_have_logits_of_zero(tmp_path):
    source, path = prepared(tmp_path / "model.json")
    first = source.images()[:1]

    def apply(variables, images):
        return jax.nn.relu(NET.apply(variables, images) - NET.apply(variables, first))

    source = dataclasses.replace(source, net=Function(apply, 3))
    assert source.write(path, save, partial(scaled, source, 1.0)).export_error < 1e-6
    with pytest.raises(RunError, match=r"relative error of 1.0e-03"):
        source.write(path, save, partial(scaled, source, 1.001))


@pytest.mark.parametrize(
    "error", [MemoryError("too large"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large")]
)
def test_exhausted_memory_is_not_a_fault_of_the_file(error, tmp_path):
    source, path = prepared(tmp_path / "model.json")

    def load(draft):
        raise error

    with pytest.raises(type(error)):
        source.write(path, save, load)


@pytest.mark.medium
def test_a_file_for_images_of_any_size_is_verified_at_a_larger_one(tmp_path):
    source, _ = prepared(tmp_path / "model.json")
    sides = []

    def logits(images):
        sides.append(images.shape[1:3])
        return np.asarray(source(source.variables, images)) * (images.shape[2] == 8)

    with pytest.raises(RunError, match=r"refused for larger images: .* relative error of 1.0e\+00"):
        source.check_larger(logits)
    assert set(sides) == {(41, 25)}


def test_the_train_form_is_exported_only_if_allowed(tmp_path):
    with pytest.raises(rj.UsageError, match=r"train form, .* export rj.fuse\(net, variables\)"):
        prepared(tmp_path / "model.json", net=TRAIN_FORM)
    source, _ = prepared(tmp_path / "model.json", net=TRAIN_FORM, allow_train_form=True)
    assert source.metadata.form == "train form"


def test_the_checksum_is_that_of_all_variables(tmp_path):
    def of(variables):
        source, _ = prepare(TRAIN_FORM, variables, tmp_path / "a", METADATA, None, True)
        return source.metadata.checkpoint_sha256

    first, second = (random_variables(TRAIN_FORM, seed) for seed in (0, 1))
    reordered = {key: dict(reversed(first[key].items())) for key in reversed(first)}
    assert of(first) == of(reordered)
    mixed = [{**first, key: second[key]} for key in ("params", "batch_stats")]
    assert len({of(each) for each in (first, second, *mixed)}) == 4


def test_wrong_arguments_are_one_line_each(tmp_path):
    with pytest.raises(rj.UsageError, match=r"the folder .*missing does not exist"):
        prepared(tmp_path / "missing" / "model.json")
    for images in (np.zeros((4, 8, 8, 3)), np.zeros((3, 8, 8, 3), np.uint8)):
        with pytest.raises(rj.UsageError, match=r"pass at least 4 as uint8 \[count, 8, 8, 3\]"):
            prepared(tmp_path / "model.json", images=images)
    for changes, problem in (
        ({"names": tuple("abcd")}, "metadata name 4 classes, but the net has 3 outputs"),
        ({"names": ("a", "b")}, "metadata name 2 classes, but the net has 3 outputs"),
        ({"names": (1, 2)}, "invalid metadata names="),
        ({"crop_pct": 1.2}, "invalid metadata crop_pct=1.2: must be from 0.01 to 1"),
        ({"mean": (0.5,)}, "invalid metadata mean="),
        ({"mean": np.ones(3)}, "invalid metadata: .*ndarray"),
        ({"mean": (123, 116, 103)}, "must be from 0 to 1, the scale of the pixels"),
        ({"std": (58, 57, 57)}, "at most 1, the scale of the pixels"),
        ({"image_size": "8"}, r"invalid metadata imgsz=.*must be \[side, side\]"),
        ({"image_size": -3}, r"must be \[side, side\]"),
        ({"interpolation": "bicubic"}, "must be bilinear"),
    ):
        with pytest.raises(rj.UsageError, match=f"model.json: .*{problem}"):
            prepared(tmp_path / "model.json", metadata=dataclasses.replace(METADATA, **changes))
    with pytest.raises(rj.UsageError, match="metadata=a dict: give a Metadata"):
        prepared(tmp_path / "model.json", metadata={"image_size": 8})
    for path in ("model.pth", "model"):
        with pytest.raises(rj.UsageError, match=r"a name that ends in \.onnx, such as model\.onnx"):
            check_extension(tmp_path / path, ".onnx")
    with pytest.raises(rj.UsageError, match=r"pip install -e '\.\[export\]'"):
        import_package("no_such_package.part")


def test_bfloat16_nets_are_exported_in_float32(tmp_path):
    source, _ = prepared(tmp_path / "model.json", net=NET.clone(dtype="bfloat16"))
    assert source.net == dataclasses.replace(NET, dtype=source.net.dtype)
    assert source.net.dtype == np.float32
