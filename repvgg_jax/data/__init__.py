"""Data: three kinds of sources, the paper's transforms, batches that depend on (seed, step) only.

source = load_source("tfds", "cifar10", data_dir, "train")
for batch in train_batches(source, Transform("pad_crop", 32), batch_size=128, seed=0):
    images = normalize(batch["image"], mean, std)       # on the device, inside the step
"""

from repvgg_jax.data.load import load_source
from repvgg_jax.data.pipeline import eval_batches, train_batches
from repvgg_jax.data.sources import Source
from repvgg_jax.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Transform, normalize

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Source",
    "Transform",
    "eval_batches",
    "load_source",
    "normalize",
    "train_batches",
]
