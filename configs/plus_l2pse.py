"""RepVGGplus-L2pse on ImageNet-2012, trained at 256 pixels and tested at 320.

  python main.py --config configs/plus_l2pse.py

Cost: 146.06 M parameters in training, of which 5.96 M in the auxiliary heads, 127.15 M fused;
32.84 G multiply-adds per image of 224 pixels fused, 1.31 times that at 256. 300 epochs.
Published top-1: 84.06% (the authors' repository; not in the paper). Not trained here.

Values marked "released" are those of the command and the code in the authors' repository (82b28bb).
Differences from it: bfloat16 (float32 there); BatchNorm over the whole batch (over 32 images there,
as with --config.model.bn_group_size=32); mixup of neighbors; a cosine that starts where the warm-up
ends (theirs has decreased by 0.07% by then).
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    config = imagenet.get_config("repvgg_plus_l2pse")
    # Released, in the command (its learning rate, 0.1 for 256 images, is the default):
    config.data.image_size = 256
    config.data.eval_image_size = 320
    config.data.policy = "raug15"
    config.train.epochs = 300.0
    config.train.mixup = 0.2
    config.optim.weight_decay = 4e-5
    config.optim.warmup_epochs = 5.0
    config.optim.label_smoothing = 0.1
    # Released, in the code: the shorter side is resized to the crop's, so that only the longer one
    # is cropped; one learning rate for all parameters (the paper's script had twice for biases);
    # Nesterov momentum.
    config.data.resize = 320
    config.optim.bias_rate_factor = 1.0
    config.optim.nesterov = True
    config.optim.auxiliary_weight = 0.1
    return config
