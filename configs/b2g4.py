"""RepVGG-B2g4 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/b2g4.py

Cost: 61.76 M parameters and 12.59 G multiply-adds per image in training, 55.78 M and
11.33 G fused; 11.6 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 78.50% (arXiv 2101.03697, Table 4: this recipe, 120 epochs);
79.38% (Table 5, with the recipe of configs/imagenet_200.py).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_b2g4")
