"""Bounds of config fields, and the hash that identifies a run by its config."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from repvgg_jax.errors import UsageError, shortened
from repvgg_jax.runtime.files import local_path


@dataclass(frozen=True)
class Field:
    """The bounds of a config field, and whether it is part of a run's identity.

    The bounds apply to a number, or to each number of a tuple.

    Attributes:
      low: the smallest value allowed.
      high: the largest value allowed.
      above: exclusive lower bound.
      below: exclusive upper bound.
      length: required number of elements of a tuple.
      whole: True if the elements of a tuple must be integers.
      note: explanation of the bounds, for the error message.
      changes_result: False for fields that do not affect what a run computes, such as paths,
        logging intervals and the mesh.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    length: int | None = None
    whole: bool = False
    note: str = ""
    changes_result: bool = True

    @property
    def bounds(self) -> str:
        """The bounds in words; empty if there are none."""
        bounds = {"at least": self.low, "above": self.above, "at most": self.high}
        bounds["below"] = self.below
        limits = [f"{word} {n:g}" for word, n in bounds.items() if n is not None]
        return " and ".join(["an integer", *limits] if self.whole else limits)

    def problem(self, value: Any) -> str | None:
        """Returns a message if the value is out of bounds, or else None."""
        numbers = value if isinstance(value, list | tuple) else [value]
        if self.length is not None and len(numbers) != self.length:
            return f"must have {self.length} numbers"
        if all(map(self._allows, numbers)):
            return None
        each = "each must be" if isinstance(value, list | tuple) else "must be"
        return f"{each} {self.bounds}" + (f", as {self.note}" if self.note else "")

    def _allows(self, number: Any) -> bool:
        """Returns True for a number within the bounds; NaN is never within them."""
        if not isinstance(number, int if self.whole else int | float) or math.isnan(number):
            return False
        return (
            (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


NEUTRAL = Field(changes_result=False)
# Fields that are not listed have no bounds and change the result.
FIELDS = {
    "seed": Field(0),
    "model.num_classes": Field(1),
    "model.depths": Field(1, whole=True),
    "model.widths": Field(1, whole=True),
    "model.strides": Field(1, whole=True),
    "model.groups": Field(1),
    "model.grouped_layers": Field(0, whole=True),
    "model.copies": Field(1),
    "model.depth": Field(1),
    "model.width": Field(1),
    "model.stem": Field(1, length=3, whole=True),
    "model.hidden": Field(1, whole=True),
    "model.dropout": Field(0, below=1),
    "model.drop_path": Field(0, below=1),
    "model.group_width": Field(1),
    "model.multiplier": Field(above=0),
    "model.growth": Field(1),
    "model.expansion": Field(1),
    "model.bn_group_size": Field(1),
    "model.remat": NEUTRAL,
    "model.branch_statistics": NEUTRAL,
    "model.conv_algorithm": NEUTRAL,
    "data.data_dir": NEUTRAL,
    "data.manual_dir": NEUTRAL,
    "data.holdout": Field(above=0, below=1),
    "data.image_size": Field(1),
    "data.resize": Field(1),
    "data.padding": Field(0),
    "data.eval_image_size": Field(1),
    "data.policy_operations": Field(1),
    "data.policy_magnitude": Field(0, 10),
    "data.policy_std": Field(0, 10),
    "data.erasing": Field(0, 1),
    "data.mean": Field(0, 1, length=3, note="pixels are scaled to [0, 1] first"),
    "data.std": Field(above=0, high=1, length=3, note="pixels are scaled to [0, 1] first"),
    "data.skip_corrupt": NEUTRAL,
    "data.workers": Field(0, changes_result=False),
    "data.seed": Field(0),
    "data.augmentation_seed": Field(0),
    "mesh.data": Field(-1, changes_result=False),
    "mesh.fsdp": Field(-1, changes_result=False),
    "mesh.min_size": Field(0, changes_result=False),
    "train.epochs": Field(above=0, high=1e9),
    "train.steps": Field(1),
    "train.batch_size": Field(1),
    "train.eval_batch_size": Field(1, changes_result=False),
    "train.steps_per_call": Field(1, changes_result=False),
    "train.accumulate": Field(1),
    "train.mixup": Field(0),
    "train.cutmix": Field(0),
    "train.deterministic": NEUTRAL,
    "train.deadline": Field(0, changes_result=False),
    "train.eval_every": Field(1, changes_result=False),
    "train.checkpoint_every": Field(1, changes_result=False),
    "train.keep": Field(1, changes_result=False),
    "train.log_every": Field(1, changes_result=False),
    "optim.learning_rate": Field(0),
    "optim.warmup_epochs": Field(0, 1e9),
    "optim.momentum": Field(0, below=1),
    "optim.weight_decay": Field(0, 1),
    "optim.bias_rate_factor": Field(0),
    "optim.clip_norm": Field(above=0, note="a norm of 0 stops training; unset it for no limit"),
    "optim.max_norm": Field(above=0, note="a norm of 0 stops training; unset it for no limit"),
    "optim.label_smoothing": Field(0, below=1),
    "optim.auxiliary_weight": Field(0),
    "optim.ema_decay": Field(0, below=1),
    "bench.batch_sizes": Field(1, whole=True, changes_result=False),
    "bench.seconds": Field(above=0, changes_result=False),
    "fuse.verify_images": Field(1, changes_result=False),
    "fuse.tolerance": Field(0, changes_result=False),
}

# Fields that may be unset only for class folders, whose images determine them (resolve.py).
REQUIRED = (
    *("model.name", "model.num_classes", "model.dtype"),
    *("data.image_size", "data.augmentation", "data.padding", "data.resize"),
    *("data.mean", "data.std"),
    *("train.epochs", "train.batch_size", "train.eval_batch_size"),
    *("optim.learning_rate", "optim.warmup_epochs", "fuse.verify_images"),
)

# The other fields with a default, which no config may unset.
ALWAYS_SET = (
    *("seed", "data.source", "data.flip", "data.policy", "data.policy_operations"),
    *("data.policy_magnitude", "data.policy_std", "data.erasing", "data.skip_corrupt"),
    *("data.workers", "mesh.data", "mesh.fsdp", "mesh.min_size"),
    *("train.accumulate", "train.mixup", "train.cutmix", "train.deterministic"),
    *("train.checkpoint_every", "train.keep", "train.log_every"),
    *("optim.momentum", "optim.nesterov", "optim.weight_decay", "optim.decay_rules"),
    *("optim.bias_rate_factor", "optim.rate_rules", "optim.ema_decay", "optim.ema_warmup"),
    *("optim.label_smoothing", "optim.auxiliary_weight"),
    *("bench.batch_sizes", "bench.seconds", "fuse.tolerance"),
)

# Fields that the config.json of earlier runs may lack; they are unset there.
ADDED = (
    *("init_head", "data.holdout", "train.steps_per_call"),
    *(name for name in FIELDS if name.startswith("model.") and name not in REQUIRED),
)

# Paths, which the functions that take them expand: a config with `~` works on several hosts.
PATHS = ("init_from", "data.data_dir", "data.manual_dir", "optim.repoptimizer_from")


def flat(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields `("optim.momentum", 0.9)` for every field of a config in JSON form."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Returns the config in JSON form: dicts, lists, numbers, strings and None."""
    return json.loads(json.dumps(config.to_dict()))


def run_fields(config: Mapping) -> dict[str, Any]:
    """Returns the fields of a config, or of its JSON form, that affect what a run computes.

    Unset fields are left out, so that adding a field does not change the hash of earlier runs.
    """
    tree = to_json(config) if isinstance(config, ConfigDict) else config
    fields = {
        name: value
        for name, value in flat(tree)
        if value is not None and FIELDS.get(name, Field()).changes_result
    }
    # Omitted without a warm-up, since earlier runs do not have this field.
    if not (fields.get("optim.ema_warmup") and fields.get("optim.ema_decay")):
        fields.pop("optim.ema_warmup", None)
    return fields


# Current and former parameter names in rules. Hashes use the former ones, so that the hashes of
# finished runs remain valid.
_HASHED_NAMES = {"/bn_identity/": "/bn0/", "/conv_1x1/": "/conv1/"}


def config_hash(config: Mapping) -> str:
    """Returns a hash of 12 hexadecimal digits, equal for configs that compute the same."""
    text = json.dumps(run_fields(config), sort_keys=True)
    for name, former in _HASHED_NAMES.items():
        text = text.replace(name, former)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_values(config: ConfigDict) -> None:
    """Raises a UsageError that lists all `value_problems` of a config."""
    if problems := "; ".join(value_problems(config)):
        raise UsageError(problems)


def value_problems(config: ConfigDict) -> Iterator[str]:
    """Yields a message for each value that is out of bounds or conflicts, and each invalid rule."""
    values = dict(flat(to_json(config)))
    for name, field in FIELDS.items():
        value = values[name]
        if value is not None and field.bounds and (problem := field.problem(value)):
            yield f"{name}={value}: {problem}"
    unset = [name for name in REQUIRED if values[name] is None]
    if unset and config.data.source != "folder":
        them, are = ("it", "is") if len(unset) == 1 else ("them", "are")
        yield f"{shortened(unset, 3)} {are} unset; only data.source=folder can do without {them}"
    for name in ALWAYS_SET:
        if name in values and values[name] is None:
            yield f"{name}=None: cannot be unset; configs/default.py has its default"
    if config.data.source == "tfds" and config.data.name is None:
        yield "data.name=None: must be the name of a TFDS data set, such as cifar10"
    for name in PATHS:
        if values[name] is not None:
            try:
                local_path(values[name], name)
            except UsageError as error:
                yield str(error)
    if (head := values["init_head"]) not in (None, "keep", "reset"):
        yield f"init_head={head!r}: choose from keep, reset"
    batch_size = config.train.batch_size
    if batch_size and (config.train.mixup or config.train.cutmix) and batch_size % 2:
        problem = "must be even, since train.mixup and train.cutmix mix pairs of images"
        yield f"train.batch_size={batch_size}: {problem}"
    for name in ("optim.decay_rules", "optim.rate_rules"):
        for rule in values[name] or ():
            if problem := _rule_problem(rule):
                yield f"{name}: {problem}"


def _rule_problem(rule: Any) -> str | None:
    try:
        pattern, factor = rule
        re.compile(pattern)
        float(factor)
    except (TypeError, ValueError):
        return f"{rule!r} is not a (regex, factor) pair"
    except re.error as error:
        return f"{pattern!r} is not a valid regular expression: {error}"
    if former := [name for name in former_names([pattern]) if name[-1].isdigit()]:
        return (
            f"{pattern!r} uses a parameter name of an earlier version, {former[0]}; the current "
            "names are conv_kxk, bn_kxk, conv_1x1, bn_1x1 and bn_identity"
        )
    return None


def former_names(paths: Iterable[str]) -> list[str]:
    """Returns the parts of parameter paths that are names from an earlier version, such as bn0."""
    former = r"(conv|bn)(\d|_pointwise|_before_\w+)"
    parts = {part for path in paths for part in path.split("/")}
    return sorted(part for part in parts if re.fullmatch(former, part))
