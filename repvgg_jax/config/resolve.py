"""Fills the unset fields of a config from its class folders: `resolve(config, workdir)`."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from repvgg_jax.config.fields import REQUIRED, check_values, flat
from repvgg_jax.config.workdir import has_checkpoints, read_config
from repvgg_jax.data.imagenet import IMAGENET_MEAN, IMAGENET_STD
from repvgg_jax.data.sources.folder_summary import FolderSummary, summarize_folder
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.devices import available_devices
from repvgg_jax.runtime.processes import inform_once, warn_once

# Fields that, besides the name, must be those of another run for its weights to fit.
_SHAPE = (
    *("model.block", "model.depths", "model.widths", "model.strides", "model.groups"),
    *("model.grouped_layers", "model.branches", "model.copies"),
    *("model.depth", "model.width", "model.activation"),
    *("model.stem", "model.hidden", "model.group_width", "model.multiplier"),
    *("model.growth", "model.expansion"),
)
OPTIONAL = (*_SHAPE, "data.holdout", "train.steps", "train.eval_every")

HOLDOUT = 0.2  # share of each class
LARGE = 10_000  # training images for which an accelerator gets a larger net and larger images


def resolve(
    config: ConfigDict, workdir: Path | None = None, devices: Sequence[jax.Device] | None = None
) -> ConfigDict:
    """Returns the config with unset fields filled in, and prints the values that it fills in.

    A config that has all of `REQUIRED` is returned unchanged. Others need class folders
    (`data.source=folder`): the unset fields of `REQUIRED` and `OPTIONAL` get the values of
    `recipe`. To resume a run, they get those of its config.json, so that images added in the
    meantime do not change them.

    Args:
      config: a config, which is not changed.
      workdir: folder of the run, if there is one.
      devices: devices that the run is for; those of this process by default.

    Raises:
      UsageError: if a value is out of bounds, or the data cannot be used.
    """
    given = dict(flat(config.to_dict()))
    if all(given[name] is not None for name in REQUIRED):
        return config
    check_values(config)
    if workdir is not None and has_checkpoints(workdir):
        values, origin = dict(flat(read_config(workdir).to_dict())), f"{workdir}/config.json"
    else:
        found = summarize_folder(config.data.data_dir, config.data.holdout or HOLDOUT)
        _check_classes(found)
        start = dict(flat(read_config(config.init_from).to_dict())) if config.init_from else None
        on_accelerator = (devices or available_devices())[0].platform != "cpu"
        values, origin = recipe(given, found, on_accelerator, start), f"the images in {found.root}"
    filled = {
        name: tuple(value) if isinstance(value := values[name], list) else value
        for name in (*REQUIRED, *OPTIONAL)
        if given[name] is None and values.get(name) is not None
    }
    if values["data.source"] == config.data.source:  # training refuses the workdir otherwise
        inform_once(f"from {origin}: {_listed(filled)}")
    resolved = copy.deepcopy(config)
    resolved.update_from_flattened_dict(filled)
    return resolved


def recipe(
    given: Mapping[str, Any],
    found: FolderSummary,
    on_accelerator: bool,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the given values, and one for each unset field; configs/folder.py has measurements.

    Args:
      given: the fields of a config by name. Those that are not None determine others: the number of
        steps follows from a given batch, for example.
      found: the images.
      on_accelerator: False for a net and a number of epochs that suit a few CPU cores.
      start: the fields of the run in `init_from`.
    """
    values = {name: value for name, value in given.items() if value is not None}
    large = on_accelerator and sum(found.train_sizes) >= LARGE
    _fill_net(values, found, large, start or {})
    _fill_images(values, found, start or {})
    _fill_schedule(values, found, on_accelerator, start is not None)
    values.setdefault("model.dtype", "bfloat16" if on_accelerator else "float32")
    return values


def _fill_net(
    values: dict[str, Any], found: FolderSummary, large: bool, start: Mapping[str, Any]
) -> None:
    fill = values.setdefault
    side = min(found.side, 224 if large else 128)
    stride = 2 ** _halvings(side)
    size = fill("data.image_size", start.get("data.image_size", side // stride * stride))
    fill("model.num_classes", len(found.train_sizes))
    if "model.name" in values:  # whose own depths, widths and strides apply
        return
    fill("model.name", start.get("model.name", "repvgg_a0"))
    if start:
        for name in _SHAPE:
            fill(name, start.get(name))
        return
    if not large:
        fill("model.depths", (1, 1, 2, 4, 1))
        fill("model.widths", (32, 48, 96, 192, 384))
    halved = (1, 2, 3, 0, 4)[: _halvings(size)]  # small images keep their size in the first stage
    fill("model.strides", tuple(2 if stage in halved else 1 for stage in range(5)))


def _halvings(side: int) -> int:
    """Returns how often, up to 5 times, a side can be halved to 4 pixels or more."""
    return min(5, max(0, int(math.log2(side / 4))))


def _fill_images(values: dict[str, Any], found: FolderSummary, start: Mapping[str, Any]) -> None:
    fill = values.setdefault
    size = values["data.image_size"]
    fill("data.augmentation", "pad_crop" if size <= 64 else "resized_crop")
    fill("data.padding", size // 8)
    fill("data.resize", (values.get("data.eval_image_size") or size) * 8 // 7)
    # Means and deviations of a few images are noisy, and would differ between a run and those that
    # start from it. BatchNorm after the first layer absorbs most of the difference anyway.
    fill("data.mean", start.get("data.mean", IMAGENET_MEAN))
    fill("data.std", start.get("data.std", IMAGENET_STD))
    if found.only_one:
        fill("data.holdout", HOLDOUT)
    fill("fuse.verify_images", min(sum(found.test_sizes), 256))


def _fill_schedule(
    values: dict[str, Any], found: FolderSummary, on_accelerator: bool, fine_tuning: bool
) -> None:
    fill = values.setdefault
    images = sum(found.train_sizes)
    batch = fill("train.batch_size", _power_of_2(images / 4, 8, 256 if on_accelerator else 128))
    fill("train.eval_batch_size", _power_of_2(sum(found.test_sizes), 32, 256))
    fewest = 100 if on_accelerator else 20
    epochs = min(max(100_000 / images, fewest), 200) / (4 if fine_tuning else 1)
    if "train.steps" in values:
        epochs = values["train.steps"] * batch / images
    epochs = fill("train.epochs", round(epochs, 2))
    steps = round(epochs * images / batch)
    if steps:  # else `total_steps` raises an error that names the epochs
        steps = fill("train.steps", steps)
    fill("train.eval_every", max(-(-images // batch), steps // 20))
    # The field is for 256 images and scales with the batch; few images train best if it grows with
    # the square root of the batch instead.
    rate = 0.2 * math.sqrt(256 / batch)
    fill("optim.learning_rate", round(rate / 10 if fine_tuning else rate, 3))
    fill("optim.warmup_epochs", round(epochs / 20, 2))


def _power_of_2(number: float, low: int, high: int) -> int:
    """Returns the largest power of 2 up to `number`; both bounds are powers of 2."""
    return min(max(1 << int(max(number, 1)).bit_length() - 1, low), high)


def _check_classes(found: FolderSummary) -> None:
    """Raises UsageError for a single class, and warns of classes that differ much in size."""
    sizes, names = found.train_sizes, found.class_names
    if len(sizes) < 2:
        raise UsageError(
            f"{found.root} has one class folder, {names[0]}; a classifier needs two or more"
        )
    few, many = min(sizes), max(sizes)
    if many >= 10 * few:
        warn_once(
            "%s: classes have from %d (%s) to %d (%s) training images; top-1 depends mostly on "
            "the large ones",
            found.root,
            few,
            names[sizes.index(few)],
            many,
            names[sizes.index(many)],
        )


def _listed(fields: Mapping[str, Any]) -> str:
    """Returns fields as text by section: `model: name=repvgg_a0, ...; data: image_size=32, ...`."""
    sections: dict[str, list[str]] = {}
    for name, value in fields.items():
        section, _, field = name.partition(".")
        text = str(value).replace(" ", "")
        if name == "optim.learning_rate":
            text += " (for 256 images)"
        sections.setdefault(section, []).append(f"{field}={text}")
    return "; ".join(f"{section}: {', '.join(listed)}" for section, listed in sections.items())
