"""ONNX files: what they contain, and that onnxruntime computes the logits of the net."""

import fnmatch

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.export import onnx_graph
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.onnx_file import OPSETS, _model, export_onnx
from repvgg_jax.export.onnx_graph import make_graph
from repvgg_jax.export.verification import prepare
from repvgg_jax.nets import abstract, smallest_side
from tests.support.commands import python
from tests.support.onnx_models import operators, optimized
from tests.support.variables import random_variables, randomised

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

SIDE = 16
FAST = ["mobilenetv1_025"]


def small(form="fused", **options):
    fields = dict(num_classes=5, depths=(1, 2), widths=(8, 16), strides=(2, 2))
    net = rj.create("repvgg_a0", **fields | options)
    variables = random_variables(net, 0)
    return rj.fuse(net, variables) if form == "fused" else (net, variables)


def properties(path):
    return {each.key: each.value for each in onnx.load(path).metadata_props}


def test_a0_is_22_convolutions_and_a_classifier(tmp_path):
    net = rj.create("repvgg_a0", block="fused")
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract(net))
    source, _ = prepare(net, variables, tmp_path / "a0.onnx", Metadata(image_size=32), None, False)
    model = _model(source, make_graph(source, False), OPSETS[0], False)
    assert operators(model) == {
        "Conv": 22,
        "Relu": 22,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }
    assert model.graph.node[0].name == "stage0_block0/conv/Conv"
    fused = optimized(model.SerializeToString(), tmp_path / "optimized.onnx")
    assert operators(fused)["FusedConv"] == 22
    assert not {"Conv", "Relu", "Transpose"} & set(operators(fused))


@pytest.mark.medium
@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (21, 10)])
def test_the_file_holds_the_net_and_its_metadata(tmp_path, opset, ir):
    net, variables = small()
    path = tmp_path / "small.onnx"
    given = Metadata(names=("a", "b", "c", "d", "e"), image_size=SIDE, preprocess=opset == 21)
    written = export_onnx(
        net, variables, path, metadata=given, opset=opset, dynamic_size=opset == 21
    )
    assert Metadata.from_strings(properties(path), "small.onnx") == written
    assert (written.form, written.names, written.image_size) == ("fused", given.names, SIDE)
    assert 0 < written.export_error < 1e-5
    assert len(written.checkpoint_sha256) == 64
    model = onnx.load(path)
    assert (model.ir_version, model.opset_import[0].version) == (ir, opset)
    assert model.graph.input[0].type.denotation == "IMAGE"
    session = ort.InferenceSession(path)
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    sides = ["height", "width"] if opset == 21 else [SIDE, SIDE]
    assert (given.name, given.shape) == ("images", ["batch", 3, *sides])
    assert given.type == ("tensor(uint8)" if opset == 21 else "tensor(float)")
    assert (result.name, result.shape) == ("logits", ["batch", 5])


@pytest.mark.medium
def test_a_graph_that_is_not_the_nets_is_not_written(tmp_path, monkeypatch):
    net, variables = small()
    path = tmp_path / "small.onnx"
    path.write_text("an earlier file")
    right = onnx_graph.merged

    def without_a_relu(*arguments):
        nodes = right(*arguments)
        nodes[1].op = "Abs"
        return nodes

    monkeypatch.setattr(onnx_graph, "merged", without_a_relu)
    with pytest.raises(rj.errors.RunError, match="was not written: its logits differ"):
        export_onnx(net, variables, path, metadata=Metadata(image_size=SIDE))
    assert path.read_text() == "an earlier file"
    assert [each.name for each in tmp_path.iterdir()] == ["small.onnx"]


def test_invalid_options_are_one_line(tmp_path):
    pair = small()
    path, metadata = tmp_path / "small.onnx", Metadata(image_size=SIDE)
    with pytest.raises(rj.UsageError, match="opset=16: choose from 17 to 21"):
        export_onnx(*pair, path, metadata=metadata, opset=16)
    with pytest.raises(rj.UsageError, match="the net is in train form"):
        export_onnx(*small(form="train"), path, metadata=metadata)
    assert not path.exists()


@pytest.mark.medium
def test_train_form(tmp_path):
    net, variables = small(form="train")
    path = tmp_path / "train.onnx"
    metadata = Metadata(image_size=SIDE)
    written = export_onnx(net, variables, path, metadata=metadata, allow_train_form=True)
    assert written.form == properties(path)["form"] == "train form"
    assert operators(onnx.load(path))["BatchNormalization"] > 6


LOAD = """
import sys
import numpy as np
for name in ("jax", "jaxlib", "flax", "repvgg_jax"):
    sys.modules[name] = None  # importing it fails
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/small.onnx")
images = np.load(sys.argv[1] + "/images.npy").transpose(0, 3, 1, 2)
np.save(sys.argv[1] + "/logits.npy", session.run(["logits"], {"images": images})[0])
"""


@pytest.mark.system
def test_a_process_without_jax_computes_the_logits(tmp_path):
    net, variables = small()
    export_onnx(net, variables, tmp_path / "small.onnx", metadata=Metadata(image_size=SIDE))
    images = np.random.default_rng(1).normal(size=(5, SIDE, SIDE, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    python("-c", LOAD, tmp_path)
    expected = np.asarray(jax.jit(net.apply)(variables, images))
    error = np.abs(np.load(tmp_path / "logits.npy") - expected).max() / np.abs(expected).max()
    assert error < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.medium if name in FAST else pytest.mark.slow)
        for name in rj.list_models()
    ],
)
def test_every_net(name, tmp_path):
    net = rj.create(name, num_classes=5, block="fused")
    variables = randomised(abstract(net), 0)
    metadata = Metadata(image_size=smallest_side(net))
    path = tmp_path / "net.onnx"
    assert export_onnx(net, variables, path, metadata=metadata).export_error < 1e-4
    transposes = operators(onnx.load(path, load_external_data=False))["Transpose"]
    assert transposes == 0 or fnmatch.fnmatch(name, "vgg*")
