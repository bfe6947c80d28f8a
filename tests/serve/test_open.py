"""Opening of exported files: preprocessing and class names of their metadata, damaged files."""

import dataclasses
import json
import random

import numpy as np
import onnx
import pytest

from repvgg_jax.data.decode.image import from_array
from repvgg_jax.data.images import normalize
from repvgg_jax.errors import UsageError
from repvgg_jax.serve.model import names_of_outputs
from repvgg_jax.serve.onnx_model import _outputs
from repvgg_jax.serve.open import open_model
from tests.support.color_model import NAMES, write_color_model
from tests.support.serving import colored, exchange, request, serving
from tests.support.stablehlo_model import write_stablehlo


@pytest.fixture
def path(tmp_path):
    return write_color_model(tmp_path / "a.onnx")


def test_images_are_prepared_and_normalized_as_the_metadata_say(tmp_path):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    path = write_color_model(tmp_path / "a.onnx", 6, crop_pct=0.75, mean=mean, std=std)
    model = open_model(path)
    assert (model.transform.resize, model.transform.eval_size) == (8, 6)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 10, 3), np.uint8)
    images = np.stack([model.prepare(from_array(image)) for image in pixels])
    np.testing.assert_array_equal(images, pixels[:, 1:7, 2:8])
    logits = np.asarray(normalize(images, mean, std)).mean((1, 2))
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(model.run(images), expected, rtol=1e-5)


def test_outputs_without_a_name_are_numbered(tmp_path):
    assert open_model(write_color_model(tmp_path / "a.onnx", names=None)).names == ("0", "1", "2")
    assert names_of_outputs(("a",), 3, "runs/a") == ("a", "1", "2")


@pytest.mark.medium
def test_a_stablehlo_file_is_served(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    for preprocess in (False, True):
        path = tmp_path / f"{preprocess}.stablehlo"
        expected = write_stablehlo(path, names=NAMES, mean=(0.1, 0.2, 0.3), preprocess=preprocess)
        model = open_model(path)
        assert (model.names, model.transform.resize, model.compiles) == (NAMES, 8, True)
        np.testing.assert_allclose(model.run(pixels), expected(pixels), rtol=1e-4)
    with serving(model) as (port, _):
        status, answer = exchange(port, request(colored("red", (8, 8), "PNG"), "/predict?top_k=3"))
    (found,) = json.loads(answer)["images"]
    row = expected(np.full((1, 8, 8, 3), (255, 0, 0), np.uint8))[0]
    order = np.argsort(-row)
    assert (status, [each["index"] for each in found["classes"]]) == (200, order.tolist())
    given = [each["probability"] for each in found["classes"]]
    np.testing.assert_allclose(given, row[order], rtol=1e-4)


def test_a_program_is_compiled_for_each_power_of_two(path):
    counts = []
    run = lambda images: counts.append(len(images))  # noqa: E731
    model = dataclasses.replace(open_model(path), run=run, batch_size=12, compiles=True)
    model.compile(6)
    model.compile(100)
    assert counts == [1, 2, 4, 6, 1, 2, 4, 8, 12]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"strings": {}}, "a.onnx has no metadata imgsz"),
        ({"names": (*NAMES, "black")}, "a.onnx names 4 classes, but its net has 3 outputs"),
        ({"names": NAMES[:2]}, "a.onnx names 2 classes, but its net has 3 outputs; give one name"),
        ({"preprocess": True}, r"a.onnx takes tensor\(float\) .* metadata describe: .*uint8"),
        # A run of this size would not fit into memory.
        ({"image_size": 65_535}, r"takes .* 8, 8\], not .* describe: one .* 3, 65535, 65535\]"),
    ],
)
def test_metadata_that_do_not_fit_are_one_line(tmp_path, values, expected):
    path = write_color_model(tmp_path / "a.onnx", **values)
    with pytest.raises(UsageError, match=expected) as caught:
        open_model(path)
    assert "\n" not in str(caught.value)


def test_a_graph_without_images_is_one_line(path):
    model = onnx.load(path)
    del model.graph.input[:], model.graph.node[:-1]
    model.graph.node[0].input[0] = "kernel"
    onnx.save(model, path)
    with pytest.raises(UsageError, match=r"a.onnx takes no input, not .* 3, 8, 8\]"):
        open_model(path)


def test_images_larger_than_the_memory_are_one_line(tmp_path):
    def run(images):
        raise MemoryError("Unable to allocate 96 GiB")

    with pytest.raises(UsageError, match=r"a.onnx: two images of 65535 x 65535 pixels"):
        _outputs(run, 65_535, tmp_path / "a.onnx")


def test_other_files_are_one_line(tmp_path, path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.stablehlo").write_bytes(b"x")
    for name, expected in [
        ("a.txt", "give an .onnx file, a .stablehlo file or a workdir"),
        ("none.onnx", "no such file"),
        ("b.stablehlo", r"b.stablehlo.json cannot be read"),
        ("none", "no run in"),
    ]:
        with pytest.raises(UsageError, match=expected):
            open_model(tmp_path / name)
    with pytest.raises(UsageError, match="holds a single step"):
        open_model(path, step=3)


def test_damaged_files_are_one_line(path, capfd):
    whole, messages = path.read_bytes(), []
    for seed in range(100):
        rng, data = random.Random(seed), bytearray(whole)
        at = rng.randrange(len(data))
        if seed % 3 == 0:
            del data[at:]
        elif seed % 3 == 1:
            data[at : at + rng.randrange(20)] = rng.randbytes(rng.randrange(20))
        else:
            data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            open_model(path)
        except UsageError as error:
            messages.append(str(error))
    assert len(messages) > 80  # the others differ in a value only
    assert all(each.startswith(str(path)) and "\n" not in each for each in messages)
    assert capfd.readouterr() == ("", "")
