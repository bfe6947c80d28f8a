"""The paper's 120-epoch recipe on ImageNet-2012, for any model.

  python main.py --config configs/imagenet.py:repvgg_b0

Cost and published top-1 of each model: the headers of configs/a0.py ... configs/d2se.py.

SGD with momentum 0.9 (no Nesterov), learning rate 0.1 for 256 images, cosine to zero, no warm-up,
weight decay 1e-4, biases at twice the learning rate; random resized crop and flip (arXiv
2101.03697, section 4.1, and the released training script). Data: `imagenet2012` as array_record,
prepared from the two archives that image-net.org offers to registered users, or class folders:

  --mode=prepare --config.data.manual_dir=<folder of ILSVRC2012_img_train.tar and _val.tar>
  --config.data.source=folder --config.data.data_dir=/data/imagenet
"""

from ml_collections import ConfigDict

from configs import default


def get_config(model: str = "repvgg_a0") -> ConfigDict:
    config = default.get_config()
    config.model.name = model
    config.model.dtype = "bfloat16"
    config.optim.bias_rate_factor = 2.0
    config.data.workers = 16
    config.train.log_every = 100
    return config
