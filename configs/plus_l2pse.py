"""RepVGGplus-L2pse on ImageNet-2012, trained at 256 pixels and tested at 320.

  python main.py --config configs/plus_l2pse.py

Cost: 146.06 M parameters in training, of which 5.96 M in the auxiliary heads, 127.15 M fused;
32.84 G multiply-adds an image of 224 pixels fused, 1.31 times that at 256. 300 epochs.
Published top-1: 84.06% (the authors' repository; not in the paper).

The released recipe: 300 epochs, 5 of warm-up, 0.1 for 256 images, one rate for all parameters,
weight decay 4e-5, label smoothing 0.1, mixup 0.2, three auxiliary losses of weight 0.1; test images
resized to 320 without a margin. Its RandAugment "m15" has a table and a scale of its own; here it
is the paper's, at the end of its ranges.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    config = imagenet.get_config("repvgg_plus_l2pse")
    config.data.image_size = 256
    config.data.eval_image_size = 320
    config.data.resize = 320
    config.data.policy = "randaugment"
    config.data.policy_magnitude = 10.0
    config.train.epochs = 300.0
    config.train.mixup = 0.2
    config.optim.weight_decay = 4e-5
    config.optim.bias_rate_factor = 1.0
    config.optim.warmup_epochs = 5.0
    config.optim.label_smoothing = 0.1
    return config
