"""LiteRT files, which need an environment with TensorFlow: pip install -e '.[dev,tflite]'."""

import json
from collections import Counter

import jax
import pytest

import repvgg_jax as rj
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.tflite_file import export_tflite
from repvgg_jax.nets import abstract, smallest_side
from tests.support.variables import random_variables, randomised

pytestmark = pytest.mark.slow  # TensorFlow takes seconds to import
tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: .[tflite]")


def test_a0_is_convolutions_with_relus_and_no_transposes(tmp_path):
    net = rj.create("repvgg_a0", block="fused")
    path, metadata = tmp_path / "a0.tflite", Metadata(image_size=224, preprocess=True)
    written = export_tflite(net, random_variables(net, 0), path, metadata=metadata)
    assert written.export_error < 1e-5
    strings = json.loads((tmp_path / "a0.tflite.json").read_text())
    assert Metadata.from_strings(strings, "a0.tflite.json") == written

    interpreter = tensorflow.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    found = Counter(each["op_name"] for each in interpreter._get_ops_details())
    assert found["CONV_2D"] == 22
    assert not {"TRANSPOSE", "RELU", "MAXIMUM"} & set(found)


SQUEEZE_EXCITE = ["efficientnet_b0", "regnety_400mf", "mobileone_s4"]
OTHERS = ["resnet18", "densenet121", "googlenet", "nasnetamobile", "mobilenetv2_050"]


@pytest.mark.parametrize("name", [*SQUEEZE_EXCITE, *OTHERS, "shufflenetv2_050"])
def test_a_net_of_each_kind(name, tmp_path):
    net = rj.create(name, num_classes=5, block="fused")
    metadata = Metadata(image_size=smallest_side(net))
    variables = randomised(abstract(net), 0)
    written = export_tflite(net, variables, tmp_path / "net.tflite", metadata=metadata)
    assert written.export_error < 1e-4


def test_a_net_that_cannot_be_converted_is_one_line(tmp_path, capfd):
    net = rj.create("deep_plain", num_classes=5)
    variables = jax.tree.map(jax.numpy.asarray, randomised(abstract(net), 0))
    with pytest.raises(rj.UsageError, match="TensorFlow cannot convert the net") as caught:
        metadata = Metadata(image_size=smallest_side(net))
        export_tflite(net, variables, tmp_path / "net.tflite", metadata=metadata)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.iterdir())
