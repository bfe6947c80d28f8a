"""The protocols of configs/cifar10_b0.py at the depth of RepVGG-A0: 22 layers.

  python main.py --config configs/cifar10_a0.py --config.data.data_dir=...
  python main.py --config configs/cifar10_a0.py:short ...

Cost: 2.7 M parameters, and 0.68 M in the short one.
"""

from ml_collections import ConfigDict

from configs import cifar10_b0

A0 = (1, 2, 4, 14, 1)


def get_config(protocol: str = "full") -> ConfigDict:
    return cifar10_b0.get_config(protocol, A0)
