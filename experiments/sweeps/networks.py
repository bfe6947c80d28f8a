"""The networks of the sweeps `comparison` and `comparison_small`, for images of 32x32."""

from typing import Any

from experiments.sweeps.spec import Overrides


def net_fields(name: str, **fields: Any) -> Overrides:
    """Returns the fields of a net, without the protocol's depths, widths and strides."""
    fields = dict.fromkeys(("depths", "widths", "strides")) | fields
    return {f"model.{field}": value for field, value in ({"name": name} | fields).items()}


_STEM = (3, 1, 1)  # keeps the size of the images

NETWORKS: dict[str, Overrides] = {
    "repvgg": net_fields(
        "repvgg_a0",
        depths=(1, 2, 4, 12, 1),
        widths=(16, 16, 32, 64, 128),
        strides=(1, 1, 2, 2, 2),
    ),
    "vgg": net_fields(
        "vgg16_bn",
        depths=(2, 2, 3, 3),
        widths=(24, 48, 96, 192),
        strides=(2, 2, 2, 2),
        hidden=(),
    ),
    "resnet": net_fields(  # ResNet-20 of its paper, section 4.2, with 1x1 shortcuts
        "resnet18", depths=(3, 3, 3), widths=(16, 32, 64), strides=(1, 2, 2), stem=_STEM
    ),
    "regnetx": net_fields(  # by its paper's rule, with 32, 22, 2, 9 and groups of 16 channels
        "regnetx_400mf",
        depths=(1, 2, 4, 2),
        widths=(32, 64, 128, 256),
        strides=(1, 2, 2, 2),
        stem=_STEM,
    ),
    "densenet": net_fields(  # its paper's 40 layers, with a growth of 9 instead of 12
        "densenet121", depths=(6, 6, 6), growth=9, width=18, stem=_STEM
    ),
    "mobilenetv2": net_fields(
        "mobilenetv2_100",
        multiplier=0.6,
        strides=(1, 1, 2, 2, 1, 2, 1),
        stem=_STEM,
        dropout=0.0,
    ),
    "shufflenetv2": net_fields("shufflenetv2_100", widths=(110, 220, 440), stem=_STEM),
    "efficientnet": net_fields(
        "efficientnet_b0",
        multiplier=0.54,
        strides=(1, 1, 2, 2, 1, 2, 1),
        stem=_STEM,
        dropout=0.0,
        drop_path=0.0,
    ),
}

# A quarter of the multiply-adds.
_SMALL = {"repvgg": {"model.strides": (2, 1, 2, 2, 2)}, "vgg": {"model.widths": (12, 24, 48, 96)}}
SMALL_NETWORKS: dict[str, Overrides] = {
    name: fields | _SMALL.get(name, {"model.stem": (3, 2, 1)}) for name, fields in NETWORKS.items()
}

NETWORKS_NOTE = (
    "The variants set all fields of the nets, so that a protocol is only a recipe, the same for "
    "all of them, and tuned for none. Parameters differ."
)
