"""Your own images in class folders, of any number and size.

  python main.py --config configs/folder.py --config.data.data_dir=<folder of class folders>

The fields that are unset below get values that suit the images, the classes and the device. The run
prints these values (docs/guides/your_own_images.md).

Measured on two CPU cores, with images of 32 pixels:

  classes                     training images   training   top-1
  3 of CIFAR-10                    30 of each      2 min   70.0% of 600 test images
  10 of CIFAR-10                  200 of each      6 min   57.8% of 2,000 test images
  100, of 1,000 images each       800 of each        2 h   78.0% of held-out images, busy cores

A hundred classes of 1,000 photographs take about six hours. Not measured on a GPU.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.source = "folder"
    config.optim.label_smoothing = 0.1
    config.optim.weight_decay = 5e-4
    config.train.log_every = 20

    # Filled in from the images, unless they are set: repvgg_jax/config/resolve.py. Several other
    # fields, such as model.widths, are unset in configs/default.py already.
    config.model.name = placeholder(str)
    config.model.num_classes = placeholder(int)
    config.model.dtype = placeholder(str)
    config.data.name = placeholder(str)
    config.data.image_size = placeholder(int)
    config.data.augmentation = placeholder(str)
    config.data.padding = placeholder(int)
    config.data.resize = placeholder(int)
    config.data.mean = placeholder(tuple)
    config.data.std = placeholder(tuple)
    config.train.epochs = placeholder(float)
    config.train.batch_size = placeholder(int)
    config.train.eval_batch_size = placeholder(int)
    config.optim.learning_rate = placeholder(float)
    config.optim.warmup_epochs = placeholder(float)
    config.fuse.verify_images = placeholder(int)
    return config
