"""Estimates the cost of runs from the measured times of finished runs.

A run of n steps that evaluates m images in batches of b is expected to take

  fixed + step * (n + share * m / b)

seconds. `step` is the time of a training step, `share` the time to evaluate an image relative to
that to train on it, and `fixed` the time of everything else: starting Python, opening the data,
compiling, checkpoints, fusing and verifying. All three are medians over rows of finished runs,
since wall times may include pauses, such as a laptop's sleep.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from experiments.sweeps.expand import LENGTH, PROTOCOLS, Run
from experiments.sweeps.rows import sweep_fields
from repvgg_jax.bench.counting import count_macs
from repvgg_jax.checkpoint import manager
from repvgg_jax.config.fields import run_fields
from repvgg_jax.config.schedule import evaluation_interval, total_steps
from repvgg_jax.data.sources.load import open_source
from repvgg_jax.nets import abstract, create

_Row = Mapping[str, Any]

# Guesses for rows without these figures: a forward pass takes a third of a training step, and
# starting Python, opening the data and compiling the step once, before a run's clock starts, 10 s.
_SHARE = 1 / 3
_STARTUP_SECONDS = 10.0
_EVAL_IMAGES = 10_000  # all rows without `eval_images` are of CIFAR-10
BY_MACS = "step time, from other variants by multiply-adds"
UNMEASURED = "startup and evaluation, which older rows lack"


class Length(NamedTuple):
    """The length of a run."""

    steps: int
    images: int  # evaluated in all, in both forms


class RemainingCost(NamedTuple):
    """The estimated cost of the rest of a run."""

    seconds: float
    device: str  # named as in rows
    guesses: tuple[str, ...] = ()  # parts that rows of the variant do not have

    @property
    def device_hours(self) -> float:
        """Hours summed over all devices, such as 16 for `TPU v5e x16`."""
        count = re.search(r" x(\d+)", self.device)
        return self.seconds * (int(count[1]) if count else 1) / 3600


def run_length(config: ConfigDict) -> Length:
    """Returns the length of a run; raises UsageError if its data are missing or too few."""
    data = config.data
    classes = config.model.num_classes
    sizes = _split_sizes(data.source, data.name, data.data_dir, classes, data.holdout)
    steps = total_steps(config, sizes["train"])
    every = evaluation_interval(config, sizes["train"])
    evaluations = -(-steps // every) + 1  # the fused form is evaluated once
    return Length(steps, evaluations * sizes["test"])


@cache
def _split_sizes(
    source: str, name: str, data_dir: str | None, classes: int, holdout: float | None
) -> dict[str, int]:
    """Returns the number of images by split."""
    options = dict(num_classes=classes, holdout=holdout)
    splits = ("test", "train")
    return {split: len(open_source(source, name, data_dir, split, **options)) for split in splits}


def saved_steps(workdir: Path) -> int:
    """Returns the step from which a stopped run would resume."""
    return max(manager.steps(workdir), default=0)


def most_common_device(rows: Iterable[_Row]) -> str | None:
    """Returns the device of most rows, the only one used for estimates; None for no rows."""
    counts = Counter(row.get("device") for row in rows)
    return min(counts, key=lambda device: (-counts[device], str(device)), default=None)


def remaining_cost(
    run: Run,
    workdir: Path,
    length: Length | None,
    rows: Sequence[_Row],
    others: Sequence[_Row] = (),
) -> RemainingCost | None:
    """Returns the estimated cost of the rest of a run; None without rows to estimate from.

    Only rows of the run's protocol and of one device are used, each run once. The step time is that
    of rows of the same variant with other seeds, if there are any. Otherwise it is scaled from the
    rows with the nearest number of multiply-adds. A run that resumes takes the fixed time again.

    Args:
      run: the run.
      workdir: its workdir, which may contain checkpoints.
      length: length of the whole run; None to take it from rows of the same length, for runs whose
        data are on another machine.
      rows: rows of finished runs; only those of their most common device are used.
      others: further rows, used if they are of that device or `rows` is empty.
    """
    own_rows = _complete(rows, run.protocol)
    other_rows = _complete(others, run.protocol)
    device = most_common_device((own_rows or other_rows).values())
    known = [row for row in (other_rows | own_rows).values() if row["device"] == device]
    fields = sweep_fields(run)
    same_length = [_length(row) for row in known if _length_fields(row) == _length_fields(fields)]
    length = length or max(same_length, default=None)
    if not known or length is None:
        return None
    same = [row for row in known if _step_fields(row) == _step_fields(fields)]
    if same:
        step_seconds = statistics.median(row["step_seconds"] for row in same)
    else:
        known, step_seconds = _scaled_by_macs(run, known)
    near = same or known
    share = statistics.median(map(_share, near))
    batches = length.images / run.config().train.batch_size
    left = max(0, length.steps - saved_steps(workdir)) / length.steps
    seconds = statistics.median(map(_fixed_seconds, near))
    seconds += step_seconds * left * (length.steps + share * batches)
    guesses = () if same else (BY_MACS,)
    if any(row.get("startup_seconds") is None for row in near):
        guesses += (UNMEASURED,)
    return RemainingCost(seconds, device, guesses)


def _length(row: _Row) -> Length:
    evaluations = len(row["curves"]["eval"]["step"]) + len(row["top1"]) - 1
    return Length(row["steps"], evaluations * (row.get("eval_images") or _EVAL_IMAGES))


def _share(row: _Row) -> float:
    """Returns the time to evaluate an image, relative to that to train on it."""
    if not (seconds := row.get("evaluation_seconds")):
        return _SHARE
    return (seconds / row["eval_images"]) / (row["step_seconds"] / _batch_size(row))


def _fixed_seconds(row: _Row) -> float:
    """Returns the part of a run's time that depends on neither steps nor evaluated images."""
    steps, images = _length(row)
    startup = row.get("startup_seconds")
    whole = row["wall_seconds"] + (_STARTUP_SECONDS if startup is None else startup)
    return max(0.0, whole - row["step_seconds"] * (steps + _share(row) * images / _batch_size(row)))


def _complete(rows: Sequence[_Row], protocol: str) -> dict[str, _Row]:
    """Returns a protocol's rows that have all figures, by config hash."""
    figures = ("device", "steps", "step_seconds", "wall_seconds", "macs", "curves")
    return {
        row["config_hash"]: row
        for row in rows
        if row["protocol"] == protocol and all(row.get(name) for name in figures)
    }


def _scaled_by_macs(run: Run, rows: Sequence[_Row]) -> tuple[list[_Row], float]:
    """Returns the rows nearest in size, within a factor of two, and the step time scaled from them.

    The size of a run is the number of multiply-adds of its train form per batch.
    """
    config = run.config()
    size = config.data.eval_image_size or config.data.image_size
    macs = _train_form_macs(FrozenConfigDict(config.model), size) * config.train.batch_size

    def ratio(row: _Row) -> float:
        """Returns the run's size relative to the row's."""
        return macs / row["macs"]["train_form"] / _batch_size(row)

    distances = [abs(math.log(ratio(row))) for row in rows]
    limit = min(distances) + math.log(2)
    near = [row for row, distance in zip(rows, distances, strict=True) if distance <= limit]
    return near, statistics.median(row["step_seconds"] * ratio(row) for row in near)


@cache
def _train_form_macs(model: FrozenConfigDict, image_size: int) -> int:
    """Returns the multiply-adds of the train form for one image."""
    net = create(**model.to_dict())
    return count_macs(net, abstract(net), image_size)


def _length_fields(row: _Row) -> dict[str, Any]:
    """Returns the changed fields that determine the number of steps."""
    names = {*LENGTH, "train.batch_size", "data.source", "data.name"}
    return {name: value for name, value in _changed_fields(row).items() if name in names}


def _step_fields(row: _Row) -> dict[str, Any]:
    """Returns the changed fields that determine the time of a step."""
    return {name: value for name, value in _changed_fields(row).items() if name not in LENGTH}


def _changed_fields(row: _Row) -> dict[str, Any]:
    """Returns the overrides whose values differ from the protocol's."""
    usual = _protocol_fields(row["protocol"])
    given = row.get("overrides") or {}
    return {name: value for name, value in given.items() if usual.get(name) != value}


def _batch_size(row: _Row) -> int:
    usual = _protocol_fields(row["protocol"])["train.batch_size"]
    return _changed_fields(row).get("train.batch_size", usual)


@cache
def _protocol_fields(protocol: str) -> dict[str, Any]:
    return run_fields(PROTOCOLS[protocol]())
