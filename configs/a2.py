"""RepVGG-A2 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/a2.py

Cost: 28.21 M parameters and 5.69 G multiply-adds per image in training, 25.50 M and
5.12 G fused; 5.2 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 76.48% (arXiv 2101.03697, Table 4: this recipe, 120 epochs).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_a2")
