"""RepVGG-B1g2 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/b1g2.py

Cost: 45.78 M parameters and 9.79 G multiply-adds per image in training, 41.36 M and
8.81 G fused; 9.0 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 77.78% (arXiv 2101.03697, Table 4: this recipe, 120 epochs).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_b1g2")
