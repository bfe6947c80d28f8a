"""The paper's 120-epoch recipe on ImageNet-2012, for any model.

  python main.py --config configs/imagenet.py:repvgg_b0
  python main.py --config configs/imagenet.py:resnet50
  python main.py --config configs/imagenet.py --config.model.name=mobilenetv2_100

Cost and published top-1 of each RepVGG: the headers of configs/a0.py ... configs/d2se.py. The paper
trains the nets of its Table 4 that it compares with by this recipe as well; those of their own
papers are in the comments below.

SGD with momentum 0.9 (no Nesterov), learning rate 0.1 for 256 images, cosine to zero, no warm-up,
weight decay 1e-4, biases at twice the learning rate; random resized crop and flip (arXiv
2101.03697, section 4.1, and the released training script). Data: `imagenet2012` as array_record,
prepared from the two archives that image-net.org offers to registered users, or class folders:

  --mode=prepare --config.data.manual_dir=<folder of ILSVRC2012_img_train.tar and _val.tar>
  --config.data.source=folder --config.data.data_dir=/data/imagenet
"""

from ml_collections import ConfigDict

from configs import default

# Published recipes of other nets, and the fields that differ from this one. Steps and other decays
# of the learning rate, and RMSProp, are not supported: half a cosine and SGD take their places.
#
# VGG (arXiv 1409.1556, section 3.1): 74 epochs of 256 images, learning rate 0.01, divided by 10
#   three times; momentum 0.9; weight decay 5e-4; dropout 0.5.
#     train.epochs=74 optim.learning_rate=0.01 optim.weight_decay=5e-4 optim.bias_rate_factor=1
# ResNet (arXiv 1512.03385, section 3.4): 256 images, 600,000 steps, learning rate 0.1, divided by
#   10 when the error plateaus; momentum 0.9; weight decay 1e-4.
#     train.steps=600000 optim.bias_rate_factor=1
# DenseNet (arXiv 1608.06993, section 4.2): 90 epochs of 256 images, learning rate 0.1, divided by
#   10 at epochs 30 and 60; Nesterov momentum 0.9; weight decay 1e-4.
#     train.epochs=90 optim.nesterov=True optim.bias_rate_factor=1
# MobileNetV2 (arXiv 1801.04381, section 6.1): RMSProp, decay and momentum 0.9; 16 x 96 images,
#   learning rate 0.045, times 0.98 each epoch; weight decay 4e-5.
#     train.batch_size=1536 optim.weight_decay=4e-5


def get_config(model: str = "repvgg_a0") -> ConfigDict:
    config = default.get_config()
    config.model.name = model
    config.model.dtype = "bfloat16"
    config.optim.bias_rate_factor = 2.0
    config.data.workers = 16
    config.train.log_every = 100
    return config
