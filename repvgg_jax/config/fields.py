"""The fields of a config: what they may be, and which of them make two configs the same run."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from repvgg_jax.errors import UsageError

# Where a run's data lie, how often it speaks and what it keeps: not what it computes.
_NOT_IDENTITY = {
    "data.data_dir",
    "data.manual_dir",
    "data.workers",
    "data.skip_corrupt",
    "train.eval_batch_size",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep",
    "train.log_every",
    "bench.batch_sizes",
    "bench.seconds",
    "fuse.verify_images",
    "fuse.tolerance",
    "mesh.data",
    "mesh.fsdp",
    "mesh.min_size",
    "model.remat",
    "model.branch_statistics",
    "model.conv_algorithm",
    "train.deadline",
    "train.deterministic",
}


def flat(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`("optim.momentum", 0.9)` for every field of a config as JSON."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON has it: dicts, lists, numbers, strings, None."""
    return json.loads(json.dumps(config.to_dict()))


def identity(config: Mapping) -> dict[str, Any]:
    """The fields that decide what a run computes, of a config or its JSON.

    Those that are unset are left out, so that a new field doesn't make old runs others, as long as
    it is born unset.
    """
    tree = plain(config) if isinstance(config, ConfigDict) else config
    fields = flat(tree)
    return {key: v for key, v in fields if v is not None and key not in _NOT_IDENTITY}


# Parameters in rules such as optim.decay_rules -> their names in earlier versions. Hashes keep
# those, so that a run of an earlier version is still recognized as done.
_HASHED_NAMES = {"/bn_identity/": "/bn0/", "/conv_1x1/": "/conv1/"}


def config_hash(config: Mapping) -> str:
    """Returns twelve hexadecimal digits that two configs share if they compute the same."""
    text = json.dumps(identity(config), sort_keys=True)
    for name, former in _HASHED_NAMES.items():
        text = text.replace(name, former)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# Field -> smallest and, where there is one, largest value that makes sense.
BOUNDS = {
    "seed": (0, None),
    "model.num_classes": (1, None),
    "data.image_size": (1, None),
    "data.padding": (0, None),
    "data.eval_image_size": (1, None),
    "data.policy_operations": (1, None),
    "data.policy_magnitude": (0, 10),
    "data.policy_std": (0, 10),
    "data.erasing": (0, 1),
    "data.workers": (0, None),
    "data.seed": (0, None),
    "data.augmentation_seed": (0, None),
    "mesh.min_size": (0, None),
    "train.epochs": (0, 1e9),
    "train.steps": (1, None),
    "train.batch_size": (1, None),
    "train.eval_batch_size": (1, None),
    "train.accumulate": (1, None),
    "train.mixup": (0, None),
    "train.cutmix": (0, None),
    "train.deadline": (0, None),
    "train.eval_every": (1, None),
    "train.checkpoint_every": (1, None),
    "train.keep": (1, None),
    "train.log_every": (1, None),
    "optim.learning_rate": (0, None),
    "optim.warmup_epochs": (0, None),
    "optim.momentum": (0, 1),
    "optim.weight_decay": (0, None),
    "optim.clip_norm": (0, None),
    "optim.max_norm": (0, None),
    "optim.label_smoothing": (0, 1),
    "optim.ema_decay": (0, 1 - 1e-9),
    "fuse.verify_images": (1, None),
    "fuse.tolerance": (0, None),
}


def check_values(config: ConfigDict) -> None:
    """Raises UsageError, with all of them, where there are `value_problems`."""
    if problems := list(value_problems(config)):
        raise UsageError("; ".join(problems))


def value_problems(config: ConfigDict) -> Iterator[str]:
    """Numbers out of range or at odds, and rules that are no expressions."""
    fields = dict(flat(plain(config)))
    for name, (low, high) in BOUNDS.items():
        value = fields[name]
        # So written that NaN is out of every range.
        if value is not None and not (value >= low and (high is None or value <= high)):
            span = f"from {low} to {high}" if high is not None else f"from {low} on"
            yield f"{name}={value}: must be {span}"
    batch_size = config.train.batch_size
    if (config.train.mixup or config.train.cutmix) and batch_size % 2:
        yield (
            f"train.batch_size={batch_size}: must be even, as train.mixup and train.cutmix mix "
            "pairs of images"
        )
    rules = {"decay_rules": config.optim.decay_rules, "rate_rules": config.optim.rate_rules}
    for name, pairs in rules.items():
        for rule in pairs:
            try:
                pattern, factor = rule
                re.compile(pattern)
                float(factor)
            except (TypeError, ValueError):
                yield f"optim.{name}: {rule!r} is no pair of an expression and a factor"
            except re.error as error:
                yield f"optim.{name}: {pattern!r} is no expression: {error}"


def unknown_field(config: ConfigDict, overrides: list[str]) -> str | None:
    """What is wrong with the first of `a.b=value` that names no field, and what would be right."""
    known = dict(flat(plain(config)))
    for override in overrides:
        name = override.split("=")[0]
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            return f"--config.{name}: no such field; did you mean {', '.join(close) or 'another'}?"
    return None
