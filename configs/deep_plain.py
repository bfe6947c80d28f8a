"""A thousand layers on the digits without BatchNorm or branches, to study initialization.

  python main.py --config configs/deep_plain.py                 delta-orthogonal kernels, tanh
  python main.py --config configs/deep_plain.py:default         the same net, the default kernels
  python main.py --config configs/deep_plain.py:leaky_relu      100 layers, LeakyReLU, max-norm

Cost: about a second per step on two CPU cores for 1000 layers, a tenth of that for 100.
Expected: over 90% test top-1 from the first and the third, chance (10%) from the second; measured
curves are in docs/results/deep_plain.md. Initialization: arXiv 1806.05393, section 3.
"""

from ml_collections import ConfigDict

from configs import quickstart
from repvgg_jax import UsageError


def get_config(variant: str = "delta_orthogonal") -> ConfigDict:
    config = quickstart.get_config()
    config.model.update(name="deep_plain", depths=None, widths=None, strides=None)
    config.model.depth = 1000
    config.model.width = 32
    config.data.augmentation = "none"
    config.train.steps = 200
    config.train.eval_every = 40
    config.train.checkpoint_every = 100
    config.train.log_every = 5
    config.optim.learning_rate = 0.012
    config.optim.warmup_epochs = 0.0
    config.optim.clip_norm = 10.0
    config.optim.weight_decay = 0.0
    config.optim.label_smoothing = 0.0
    # Under tanh, features shrink as 1 / sqrt(depth), and stable learning rates as 1 / depth.
    config.optim.rate_rules = ((r"head/.*", 300.0),)
    if variant in ("delta_orthogonal", "default"):
        config.model.activation = "tanh"
        config.model.initializer = variant
    elif variant == "leaky_relu":
        config.model.depth = 100
        config.model.activation = "leaky_relu"
        config.model.initializer = "delta_orthogonal"
        config.optim.max_norm = 1.36  # just above the initial norm of filters, 1.355
        config.optim.learning_rate = 0.4
        config.optim.clip_norm = 1.0
        config.optim.rate_rules = ()
    else:
        raise UsageError(
            f"unknown variant {variant!r}; choose delta_orthogonal, default or leaky_relu"
        )
    return config
