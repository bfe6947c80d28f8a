"""Any net on CIFAR-10, in its form for images of 32x32.

  python main.py --config configs/cifar10_nets.py:mobilenetv2_100 --config.data.data_dir=...

Nets for ImageNet halve the image five times. For images of 32x32, each leaves out the first two of
these halvings, by stride 1 in its stem and in its first stages, and ends with maps of 4x4. VGG
keeps all five, as is usual, and has a single dense layer. docs/concepts/nets.md lists the fields.

For a GPU: the recipe of configs/cifar10_b0.py. Nets of full width and depth have not been trained
with it. The sweep `comparison` (experiments/sweeps/networks.py) has small members of the same
families, all of the same cost.
"""

from typing import Any

from ml_collections import ConfigDict

import repvgg_jax as rj
from configs import cifar10_b0


def get_config(model: str = "resnet18") -> ConfigDict:
    config = cifar10_b0.get_config()
    config.model.update({"name": model, "depths": None, "widths": None, "strides": None})
    config.model.update(small_form(model))
    return config


def small_form(model: str) -> dict[str, Any]:
    """Returns the fields of a net's form for images of 32x32 that differ from its own."""
    net = rj.create(model)
    if hasattr(net, "hidden"):  # VGG
        return {"hidden": ()}
    form, left = {}, 2  # halvings to leave out
    if hasattr(net, "stem"):
        form["stem"] = (3, 1, 1)
        left -= sum(stride > 1 for stride in net.stem[1:])
    if left and hasattr(net, "strides"):
        halving = [stage for stage, stride in enumerate(net.strides) if stride > 1][:left]
        form["strides"] = tuple(1 if i in halving else s for i, s in enumerate(net.strides))
    return form
