"""StableHLO files and their headers; tests/system opens them where only JAX is."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.data.images import normalize
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.safetensors_file import export_safetensors, read_safetensors
from repvgg_jax.export.stablehlo_file import _exported, export_stablehlo, read_stablehlo
from repvgg_jax.export.verification import Export
from tests.support.onnx_models import Function
from tests.support.variables import random_variables

NET = rj.create("repvgg_a0", num_classes=3, depths=(1,), widths=(4,), strides=(2,), block="fused")
METADATA = Metadata(image_size=8, names=("cat", "dog", "crow"), preprocess=True)


@pytest.mark.medium
def test_weights_may_be_an_argument_and_sizes_any(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    variables, path = random_variables(NET, 0), tmp_path / "model.stablehlo"
    options = dict(weights="argument", dynamic_size=True, platforms=["cpu", "tpu"])
    written = export_stablehlo(NET, variables, path, metadata=METADATA, **options)
    assert written.export_error < 1e-5
    program, metadata = read_stablehlo(path)
    assert metadata == written
    assert program.platforms == ("cpu", "tpu")

    weights = tmp_path / "model.safetensors"
    other = random_variables(NET, 1)
    plain = dataclasses.replace(METADATA, preprocess=False)
    with pytest.raises(rj.UsageError, match=r"preprocess=True: a file of arrays"):
        export_safetensors(NET, other, weights, metadata=METADATA)
    written = export_safetensors(NET, other, weights, metadata=plain)
    assert written.export_error < 1e-5
    variables, metadata = read_safetensors(weights)
    jax.tree.map(np.testing.assert_array_equal, variables, other)
    assert metadata == written
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 10, 3), np.uint8)
    found = program.call(safetensors.load_file(weights), pixels)
    expected = NET.apply(other, normalize(pixels, METADATA.mean, METADATA.std))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    header = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert header["input"]["images"] == "uint8[batch,height,width,3]"
    for metadata in (3, "mean"):
        (tmp_path / "model.stablehlo.json").write_text(json.dumps(header | {"metadata": metadata}))
        with pytest.raises(rj.UsageError, match="has no metadata imgsz"):
            read_stablehlo(path)
    header["metadata"].pop("mean")
    (tmp_path / "model.stablehlo.json").write_text(json.dumps(header))
    with pytest.raises(rj.UsageError, match=r"model.stablehlo.json has no metadata mean"):
        read_stablehlo(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(rj.UsageError, match=r"damaged, or not the file of .*model.stablehlo.json"):
        read_stablehlo(path)
    (tmp_path / "model.stablehlo.json").unlink()
    with pytest.raises(rj.UsageError, match=r"model.stablehlo.json cannot be read .*export it"):
        read_stablehlo(path)


def test_a_net_that_depends_on_the_size_is_one_line(tmp_path):
    def call(_, images):
        return images.reshape(images.shape[0], -1) @ np.ones((192, 3), np.float32)

    source = Export(Function(call, 3), {}, METADATA, np.zeros((4, 8, 8, 3), np.uint8))
    assert _exported(source, "inside", ["cpu"], False).out_avals[0].shape[1] == 3
    with pytest.raises(rj.UsageError, match=r"cannot be exported with dynamic_size=True") as caught:
        _exported(source, "inside", ["cpu"], True)
    assert "\n" not in str(caught.value)


def test_platforms_must_have_this_machines(tmp_path):
    for platforms in ("cpu", ["tpu"], ["cpu", "gpu"]):
        with pytest.raises(rj.UsageError, match=r"give a list of some of cpu, .* that has 'cpu'"):
            export_stablehlo(NET, random_variables(NET, 0), tmp_path / "a", platforms=platforms)


def test_weights_are_inside_or_an_argument(tmp_path):
    with pytest.raises(rj.UsageError, match="weights='outside': choose 'inside' or 'argument'"):
        export_stablehlo(NET, random_variables(NET, 0), tmp_path / "a", weights="outside")
