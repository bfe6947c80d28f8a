"""A run of seconds on the bundled digits, shared by tests of sweeps."""

# Overrides of cifar10_short: three layers of up to eight channels on 8x8 images.
FIELDS = {
    "data.source": "digits",
    "data.name": "digits",
    "data.image_size": 8,
    "data.padding": 1,
    "data.flip": False,
    "model.widths": (4, 8),
    "model.depths": (1, 2),
    "model.strides": (2, 1),
    "train.steps": 8,
    "train.batch_size": 32,
    "train.eval_batch_size": 180,
    "train.eval_every": 6,
    "train.checkpoint_every": 2,
    "train.log_every": 2,
    "optim.warmup_epochs": 0,
    "fuse.verify_images": 60,
}


def dotted(changes):
    """Returns keywords such as `train__steps` with dots, as names of fields."""
    return {name.replace("__", "."): value for name, value in changes.items()}


def flags(**changes):
    """Returns the fields as command-line flags."""
    fields = FIELDS | dotted(changes)
    return [f"--config.{name}={value}" for name, value in fields.items()]
