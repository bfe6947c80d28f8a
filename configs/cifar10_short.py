"""The two protocols of the ablation sweeps on CIFAR-10 (experiments/sweeps).

  python -m experiments.run branches --launcher=local --config.data.data_dir=<TFDS data folder>
  python main.py --config configs/cifar10_short.py --config.data.data_dir=...          one run
  python main.py --config configs/cifar10_short.py:full ...

`cifar10_short` is for two CPU cores: all 50,000 images, three epochs, two to three minutes per run.
`cifar10_full` is for a GPU: two stages at full resolution, bfloat16, 20 epochs. Both train the same
net, with an identity branch in seven of its twelve layers: 1.07 M parameters, 0.96 M fused.
"""

from ml_collections import ConfigDict

from configs import cifar10
from repvgg_jax import UsageError


def get_config(protocol: str = "short") -> ConfigDict:
    config = cifar10.get_config()
    config.model.depths = (1, 2, 4, 4, 1)
    config.model.widths = (16, 32, 64, 128, 256)
    if protocol == "short":
        config.train.epochs = 3.0
        config.train.checkpoint_every = 100
        config.train.log_every = 25
        config.optim.warmup_epochs = 0.25
    elif protocol == "full":
        config.model.strides = (1, 1, 2, 2, 2)
        config.model.dtype = "bfloat16"
        config.train.epochs = 20.0
        config.train.eval_every = 1953  # four times; a GPU needs a second for each epoch
        config.train.checkpoint_every = 10_000
        config.train.log_every = 100
        config.optim.warmup_epochs = 1.0
    else:
        raise UsageError(
            f"unknown protocol {protocol!r}; choose short or full, as in cifar10_short.py:full"
        )
    return config
