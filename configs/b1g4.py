"""RepVGG-B1g4 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/b1g4.py

Cost: 39.97 M parameters and 8.12 G multiply-adds per image in training, 36.13 M and
7.31 G fused; 7.5 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 77.58% (arXiv 2101.03697, Table 4: this recipe, 120 epochs).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_b1g4")
