"""RepVGG-A0 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/a0.py

Cost: 9.11 M parameters and 1.51 G multiply-adds per image in training, 8.31 M and
1.36 G fused; 1.4 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 72.41% (arXiv 2101.03697, Table 4: this recipe, 120 epochs).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_a0")
