"""RepVGG-A1 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/a1.py

Cost: 14.09 M parameters and 2.63 G multiply-adds per image in training, 12.79 M and
2.36 G fused; 2.4 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 74.46% (arXiv 2101.03697, Table 4: this recipe, 120 epochs).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_a1")
