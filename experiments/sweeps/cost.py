"""How many steps runs have, and what they cost by those that are finished."""

from __future__ import annotations

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
from experiments.sweeps.rows import place
from repvgg_jax.bench.counting import count_macs
from repvgg_jax.checkpoint import manager
from repvgg_jax.config.build import make_schedule, total_steps
from repvgg_jax.config.fields import identity
from repvgg_jax.data.sources.load import load_source
from repvgg_jax.data.sources.tfds import load_prepared
from repvgg_jax.nets import abstract_variables, create

_Row = Mapping[str, Any]


class Cost(NamedTuple):
    """Of what is left of a run: seconds, and the device that they are of, as rows name it.

    `guessed`: by runs of other variants, in proportion to their multiply-adds.
    """

    seconds: float
    device: str
    guessed: bool

    @property
    def device_hours(self) -> float:
        """Of all devices: 16 of `TPU v5e x16`."""
        count = re.search(r" x(\d+)", self.device)
        return self.seconds * (int(count[1]) if count else 1) / 3600


def steps_of(config: ConfigDict) -> int:
    """Steps of a run.

    Raises:
      UsageError: where its data cannot be used, or are too few for its schedule.
    """
    data = config.data
    size = _train_size(data.source, data.name, data.data_dir, config.model.num_classes)
    make_schedule(config, size)  # for its checks
    return total_steps(config, size)


@cache
def _train_size(source: str, name: str, data_dir: str | None, classes: int) -> int:
    """Training images, of which a prepared set's are not decoded; the test split is opened too."""
    test, train = (
        load_prepared(name, data_dir, split, num_classes=classes)[0]
        if source == "tfds"
        else load_source(source, name, data_dir, split, num_classes=classes)
        for split in ("test", "train")
    )
    del test
    return len(train)


def saved_steps(workdir: Path) -> int:
    """From which step a run that is not running would go on."""
    return max(manager.steps(workdir), default=0)


def usual_device(rows: Iterable[_Row]) -> str | None:
    """The device of most rows, the only one whose times are compared; None of no rows."""
    counts = Counter(row.get("device") for row in rows)
    return min(counts, key=lambda device: (-counts[device], str(device)), default=None)


def expected_cost(
    run: Run,
    workdir: Path,
    steps: int | None,
    rows: Sequence[_Row],
    others: Sequence[_Row] = (),
) -> Cost | None:
    """Of what is left of a run, by the measured steps of finished runs; None where there are none.

    These are of its protocol, and of one device, each run once. Those of the same variant with
    other seeds count where there are some; else those nearest in multiply-adds, by their seconds
    for one. What runs do beside training is to its time as in the median of these.

    Args:
      run: of a sweep.
      workdir: where it may have begun.
      steps: of the whole run; None where its data are not here, and rows of its length say it.
      rows: of finished runs, whose usual device counts.
      others: more of them, which count where they are of that device, or where `rows` has none.
    """
    rows, others = _measured(rows, run.protocol), _measured(others, run.protocol)
    device = usual_device((rows or others).values())
    rows = [row for row in (others | rows).values() if row["device"] == device]
    own = place(run)
    alike = (row["steps"] for row in rows if _length(row) == _length(own))
    steps = steps or max(alike, default=None)
    if not rows or steps is None:
        return None
    if same := [row for row in rows if _computed(row) == _computed(own)]:
        chosen, step_seconds = same, statistics.median(row["step_seconds"] for row in same)
    else:
        chosen, step_seconds = _by_macs(run, rows)
    # A pause, as of a laptop that slept, is in a run's wall time too: hence the median.
    in_all = statistics.median(r["wall_seconds"] / r["steps"] / r["step_seconds"] for r in chosen)
    left = max(0, steps - saved_steps(workdir))
    return Cost(step_seconds * in_all * left, device, guessed=not same)


def _measured(rows: Sequence[_Row], protocol: str) -> dict[str, _Row]:
    """By hash, those of a protocol that have all figures."""
    figures = ("device", "steps", "step_seconds", "wall_seconds", "macs")
    return {
        row["config_hash"]: row
        for row in rows
        if row["protocol"] == protocol and all(row.get(name) for name in figures)
    }


def _by_macs(run: Run, rows: Sequence[_Row]) -> tuple[list[_Row], float]:
    """The rows within a factor of two of the nearest in size, and a step's seconds by them.

    A run's size is the multiply-adds of its training form for a batch.
    """
    config, usual = run.config(), _identity(run.protocol)["train.batch_size"]
    size = config.data.eval_image_size or config.data.image_size
    macs = _macs(FrozenConfigDict(config.model), size) * config.train.batch_size

    def times(row: _Row) -> float:
        """How many times as large the run is."""
        batch = _fields(row).get("train.batch_size", usual)
        return macs / row["macs"]["train_form"] / batch

    away = [abs(math.log(times(row))) for row in rows]
    near = [row for row, far in zip(rows, away, strict=True) if far <= min(away) + math.log(2)]
    return near, statistics.median(row["step_seconds"] * times(row) for row in near)


@cache
def _macs(model: FrozenConfigDict, image_size: int) -> int:
    """Of the training form, for one image."""
    net = create(**model.to_dict())
    return count_macs(net, abstract_variables(net), image_size)


def _length(row: _Row) -> dict[str, Any]:
    """What of a run's fields decides how many steps it has."""
    names = {*LENGTH, "train.batch_size", "data.source", "data.name"}
    return {name: value for name, value in _fields(row).items() if name in names}


def _computed(row: _Row) -> dict[str, Any]:
    """What of a run's fields decides how long a step takes."""
    return {name: value for name, value in _fields(row).items() if name not in LENGTH}


def _fields(row: _Row) -> dict[str, Any]:
    """Those with another value than the protocol's, as a variant may name the protocol's own."""
    usual = _identity(row["protocol"])
    given = row.get("overrides") or {}
    return {name: value for name, value in given.items() if usual.get(name) != value}


@cache
def _identity(protocol: str) -> dict[str, Any]:
    return identity(PROTOCOLS[protocol]())
