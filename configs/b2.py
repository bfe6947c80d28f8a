"""RepVGG-B2 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/b2.py

Cost: 89.02 M parameters and 20.42 G multiply-adds per image in training, 80.32 M and
18.38 G fused; 18.8 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 78.78% (arXiv 2101.03697, Table 4: this recipe, 120 epochs).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_b2")
