"""The paper's 200-epoch recipe on ImageNet-2012, for any model.

  python main.py --config configs/imagenet_200.py:repvgg_b3

Cost: 5/3 of the 120-epoch recipe's in the headers of configs/a0.py ... configs/d2se.py.
Published top-1: B3 80.52%, B3g4 80.21%, B2g4 79.38% (Table 5; arXiv 2101.03697).

Adds 5 epochs of warm-up, AutoAugment, label smoothing and mixup to configs/imagenet.py (section
4.2). The paper does not give the strength of the last two: other implementations commonly use 0.1
and an alpha of 0.2.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config(model: str = "repvgg_b3") -> ConfigDict:
    config = imagenet.get_config(model)
    config.data.policy = "autoaugment"
    config.train.epochs = 200.0
    config.train.mixup = 0.2
    config.optim.warmup_epochs = 5.0
    config.optim.label_smoothing = 0.1
    return config
