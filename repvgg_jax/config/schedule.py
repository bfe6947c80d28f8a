"""Lengths in steps, which depend on a config and the number of training images."""

from ml_collections import ConfigDict

from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.processes import warn_once

# An evaluation also writes a checkpoint. By default, they are at least this many steps apart.
_EVALUATION_INTERVAL = 50
_FEW_STEPS = 4


def check_schedule(config: ConfigDict) -> None:
    """Raises UsageError if the warm-up is as long as the run; called before the data are opened."""
    warmup, epochs = config.optim.warmup_epochs, config.train.epochs
    if config.train.steps is None and warmup >= epochs:
        raise UsageError(
            f"optim.warmup_epochs={warmup:g} leaves nothing of train.epochs={epochs:g}; set "
            "--config.optim.warmup_epochs=0, or train for more epochs"
        )


def total_steps(config: ConfigDict, train_size: int) -> int:
    """Returns the number of training steps, from `train.steps` or else `train.epochs`.

    Raises:
      UsageError: if there are no steps, or none after the warm-up.
    """
    if config.train.steps is not None:
        steps = config.train.steps
    else:
        steps = round(config.train.epochs * steps_per_epoch(config, train_size))
        if steps < 1:
            raise UsageError(
                f"train.epochs={config.train.epochs} with {train_size} images is less than one "
                f"step of train.batch_size={config.train.batch_size}; use a smaller batch or more "
                "epochs"
            )
    warmup = warmup_steps(config, train_size)
    if warmup >= steps:
        raise UsageError(
            f"optim.warmup_epochs={config.optim.warmup_epochs:g} takes {warmup} steps, but "
            f"the run has {steps}; set --config.optim.warmup_epochs=0, or train for more than "
            f"{warmup} steps"
        )
    return steps


def warmup_steps(config: ConfigDict, train_size: int) -> int:
    """Returns the number of steps of the learning rate's warm-up."""
    return round(config.optim.warmup_epochs * steps_per_epoch(config, train_size))


def steps_per_epoch(config: ConfigDict, train_size: int) -> float:
    """Returns the length of an epoch in steps, not rounded."""
    return train_size / config.train.batch_size


def evaluation_interval(config: ConfigDict, train_size: int) -> int:
    """Returns `train.eval_every`, by default an epoch, or several short ones.

    Example:
      >>> from configs import default
      >>> config = default.get_config()  # with a batch of 256
      >>> [evaluation_interval(config, images) for images in (1_281_167, 1_000)]
      [5005, 52]
    """
    if config.train.eval_every is not None:
        return config.train.eval_every
    epoch = max(-(-train_size // config.train.batch_size), 1)
    return epoch * -(-_EVALUATION_INTERVAL // epoch)


def warn_about_batches(config: ConfigDict, train_size: int) -> None:
    """Logs a warning if a batch is larger than the training set, or an epoch is a few steps."""
    batch, steps = config.train.batch_size, steps_per_epoch(config, train_size)
    if steps < 1:
        warn_once(
            "train.batch_size=%d is larger than the training set of %d images, so every batch has "
            "some of them several times; use a smaller batch",
            batch,
            train_size,
        )
    elif steps < _FEW_STEPS:
        warn_once(
            "an epoch is only %.2g steps of train.batch_size=%d, since there are %d training "
            "images; a smaller batch takes more steps",
            steps,
            batch,
            train_size,
        )
