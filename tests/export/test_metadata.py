"""Metadata of exported models."""

import ast

import pytest

import repvgg_jax as rj
from repvgg_jax.export.metadata import Metadata

FULL = Metadata(
    names=("café", 'a "b"\n', "犬🐕"),
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    image_size=320,
    crop_pct=320 / 365,
    preprocess=True,
    model="repvgg_a0",
    form="train form",
    commit="1c78fb5e",
    checkpoint_sha256="00ff",
    fusion_error=1e-6,
    export_error=2.5e-7,
)


@pytest.mark.parametrize("metadata", [FULL, Metadata()])
def test_strings_hold_all_metadata(metadata):
    strings = metadata.to_strings()
    assert all(isinstance(text, str) for text in [*strings, *strings.values()])
    assert Metadata.from_strings(strings, "a.onnx") == metadata


def test_other_readers_of_the_strings():
    strings = FULL.to_strings()
    names = ast.literal_eval(strings["names"])  # as ultralytics reads them
    assert tuple(names[str(index)] for index in range(3)) == FULL.names
    assert ast.literal_eval(strings["imgsz"]) == [320, 320]
    assert strings["Image.NominalPixelRange"] == "NominalRange_0_255"
    assert Metadata().to_strings()["Image.NominalPixelRange"] == "Normalized_0_1"


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("names", '{"0": "a", "2": "b"}', "first class"),
        ("names", '["a"]', "first class"),
        ("names", '"ab"', "first class"),
        ("names", "{0: 'cat'", ""),
        ("names", "[" * 100_000, ""),
        ("mean", "[0, 0]", ""),
        ("mean", "[0, 0, NaN]", "finite"),
        ("mean", "3", ""),
        ("std", "[1, 0, 1]", "positive"),
        ("imgsz", "[224, 256]", "side"),
        ("imgsz", "[1e9, 1e9]", "side"),
        ("imgsz", "[0, 0]", "side"),
        ("names", r'{"0": "caf\udce9"}', "surrogates"),
        ("mean", f"[{'9' * 400}, 0, 0]", ""),
        ("crop_pct", "1e-320", "from 0.01 to 1"),
        ("crop_pct", "nan", "finite"),
        ("interpolation", "bicubic", "bilinear"),
        ("preprocess", "True", "true or false"),
        ("task", "detect", "classify"),
    ],
)
def test_an_invalid_value_is_one_line(key, text, problem):
    with pytest.raises(rj.UsageError) as caught:
        Metadata.from_strings(FULL.to_strings() | {key: text}, "a.onnx")
    message = str(caught.value)
    assert message.startswith(f"a.onnx: invalid metadata {key}=")
    assert problem in message
    assert "\n" not in message
    assert len(message) < 400


def test_a_file_without_metadata_is_one_line():
    with pytest.raises(
        rj.UsageError, match=r"a\.onnx has no metadata imgsz, mean, .*--mode=export"
    ):
        Metadata.from_strings({"names": "{}"}, "a.onnx")


def test_of_net():
    net = rj.create("repvgg_a0", num_classes=10)
    assert Metadata().of_net(net).form == "train form"
    fused = Metadata().of_net(net.clone(block="fused"))
    assert (fused.form, fused.model) == ("fused", "RepVGG, 10 classes")
