"""Names of models, and of what a config changes in them."""

import pytest

from configs import default, quickstart
from repvgg_jax.config.describe import data_name, model_name
from repvgg_jax.data.sources.load import SOURCES


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_classes": 10, "conv_algorithm": "xla", "depths": (1, 2, 4, 14, 1)}, "repvgg_a0"),
        ({"block": "acb", "dtype": "bfloat16"}, "repvgg_a0 (block acb, bfloat16)"),
        ({"block": "repvgg", "widths": (8,) * 5}, "RepVGG (widths 8-8-8-8-8)"),
        ({"name": "deep_plain", "depth": 50}, "DeepPlain (depth 50)"),
        ({"name": "vgg11", "strides": (2, 2), "hidden": ()}, "vgg11 (strides 2-2, hidden none)"),
        ({"name": "mobileone_s1", "copies": 4}, "mobileone_s1 (copies 4)"),
        ({"name": "mobileone_s1", "copies": 1}, "mobileone_s1"),
    ],
)
def test_a_name_stands_for_the_models_own_fields(fields, expected):
    config = default.get_config()
    config.model.update(fields)
    assert model_name(config) == expected


def test_quickstart_is_no_a0():
    expected = "RepVGG (depths 1-2-3-1, widths 16-32-64-128, strides 1-2-2-1)"
    assert model_name(quickstart.get_config()) == expected


def test_data_are_named_by_what_is_read():
    data = default.get_config().data
    data.name, data.data_dir = "cifar10", "photos"
    names = {}
    for data.source in SOURCES:
        names[data.source] = data_name(data)
    assert names == {"digits": "digits", "tfds": "cifar10", "folder": "photos"}
