"""RepVGG-D2se on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/d2se.py

Cost: 133.33 M parameters and 36.48 G multiply-adds per image in training, 120.39 M and
32.83 G fused; 33.6 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 83.55% (the authors' repository: trained at 224, tested at 320, stronger recipe).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_d2se")
