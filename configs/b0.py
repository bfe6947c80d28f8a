"""RepVGG-B0 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/b0.py

Cost: 15.82 M parameters and 3.40 G multiply-adds per image in training, 14.34 M and
3.06 G fused; 3.1 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 75.14% (arXiv 2101.03697, Table 4: this recipe, 120 epochs).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_b0")
