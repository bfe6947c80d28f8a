"""RepVGG-B3g2 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/b3g2.py

Cost: 96.91 M parameters and 21.61 G multiply-adds per image in training, 87.40 M and
19.45 G fused; 19.9 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: none; the authors released weights without a figure.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_b3g2")
