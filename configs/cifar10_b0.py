"""The protocols of the ablation sweeps at the depth of RepVGG-B0: 28 layers, narrow, on CIFAR-10.

  python -m experiments.run branches --protocol=cifar10_b0_short --launcher=local ...
  python main.py --config configs/cifar10_b0.py --config.data.data_dir=...          one run
  python main.py --config configs/cifar10_b0.py:short ...

`cifar10_b0` is for a GPU: two stages at full resolution, bfloat16, batches of 256, 20 epochs; 3.2 M
parameters. Each run takes half a minute on an H100 by itself, after compiling.
`cifar10_b0_short` is for two CPU cores: half as wide, one layer at full resolution, 10 epochs,
about 15 minutes per run; 0.79 M parameters. 24 and 23 of the 28 layers have identity branches.
"""

from ml_collections import ConfigDict

from configs import cifar10
from repvgg_jax import UsageError

B0 = (1, 4, 6, 16, 1)


def get_config(protocol: str = "full", depths: tuple[int, ...] = B0) -> ConfigDict:
    config = cifar10.get_config("full")
    config.model.depths = depths
    if protocol == "full":
        config.model.widths = (32, 32, 64, 128, 256)
        config.train.batch_size = 256
        config.train.epochs = 20.0
        config.train.eval_every = 651  # six times
        config.train.checkpoint_every = 10_000
        config.optim.warmup_epochs = 1.0
    elif protocol == "short":
        config.model.widths = (16, 16, 32, 64, 128)
        config.model.strides = (1, 2, 2, 1, 2)
        config.model.dtype = "float32"
        config.train.epochs = 10.0
        config.train.checkpoint_every = 200
        config.train.log_every = 50
        config.optim.warmup_epochs = 0.5
    else:
        raise UsageError(f"unknown protocol {protocol!r}; choose full or short")
    return config
