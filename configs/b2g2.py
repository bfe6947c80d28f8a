"""RepVGG-B2g2 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/b2g2.py

Cost: 70.85 M parameters and 15.20 G multiply-adds per image in training, 63.96 M and
13.68 G fused; 14.0 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: none; the authors released weights without a figure.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_b2g2")
