"""RepVGG-B3g4 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/b3g4.py

Cost: 83.83 M parameters and 17.85 G multiply-adds per image in training, 75.63 M and
16.06 G fused; 16.5 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 80.21% (Table 5, with the recipe of configs/imagenet_200.py;
arXiv 2101.03697).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_b3g4")
