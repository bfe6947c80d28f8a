"""RepVGG-B1 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/b1.py

Cost: 57.42 M parameters and 13.13 G multiply-adds per image in training, 51.83 M and
11.82 G fused; 12.1 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 78.37% (arXiv 2101.03697, Table 4: this recipe, 120 epochs).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_b1")
