"""RepVGG-B3 on ImageNet-2012, the paper's 120-epoch recipe.

  python main.py --config configs/b3.py

Cost: 123.09 M parameters and 29.12 G multiply-adds per image in training, 110.96 M and
26.21 G fused; 26.9 exaFLOP for the run (600,547 steps of 256 images).
Published top-1: 80.52%, with the 200-epoch recipe of configs/imagenet_200.py (Table 5; arXiv
2101.03697).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    return imagenet.get_config("repvgg_b3")
