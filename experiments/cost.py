"""How many steps runs have, and what they cost by those that are finished."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from experiments.results import place
from experiments.sweeps import LENGTH, PROTOCOLS, Run
from repvgg_jax import checkpoint
from repvgg_jax.bench import count_macs
from repvgg_jax.config import make_schedule, total_steps
from repvgg_jax.data import load_source
from repvgg_jax.data.prepared import load_prepared
from repvgg_jax.fused_weights import abstract_variables
from repvgg_jax.nets import create


class Cost(NamedTuple):
    """Of what is left of a run: seconds, and devices that it takes for as long.

    `guessed`: by runs of other variants, and what their steps multiply.
    """

    seconds: float
    devices: int
    guessed: bool


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
    return max(checkpoint.steps(workdir), default=0)


def usual_device(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The device of most rows, the only one whose times are compared; None of no rows."""
    counts = Counter(row.get("device") for row in rows)
    return min(counts, key=lambda device: (-counts[device], str(device)), default=None)


def expected_cost(
    run: Run, workdir: Path, steps: int, rows: Sequence[dict[str, Any]]
) -> Cost | None:
    """Of what is left of a run, by the seconds a step of finished runs; None where there are none.

    These are of its protocol, and of one device. Those of the same variant with other seeds count
    where there are some. Else all do, by their seconds a multiply-add of the training form.

    Args:
      run: of a sweep.
      workdir: where it may have begun.
      steps: of the whole run.
      rows: of finished runs.
    """
    rows = [row for row in rows if row["protocol"] == run.protocol and row.get("steps")]
    device = usual_device(rows)
    rows = [row for row in rows if row.get("device") == device and row.get("wall_seconds")]
    own = _computed(place(run)["overrides"])
    if same := [row for row in rows if _computed(row.get("overrides") or {}) == own]:
        step_seconds = statistics.median(map(_step_seconds, same))
    elif rows:
        config, usual = run.config(), PROTOCOLS[run.protocol]()
        size = config.data.eval_image_size or config.data.image_size
        macs = _macs(FrozenConfigDict(config.model), size) * config.train.batch_size
        rates = [_mac_seconds(row, usual.train.batch_size) for row in rows]
        step_seconds = macs * statistics.median(rates)
    else:
        return None
    left = max(0, steps - saved_steps(workdir))
    return Cost(step_seconds * left, devices_of(device), guessed=not same)


def _step_seconds(row: Mapping[str, Any]) -> float:
    return row["wall_seconds"] / row["steps"]


def _mac_seconds(row: Mapping[str, Any], batch_size: int) -> float:
    """Of one multiply-add of the training form; `batch_size` is the protocol's."""
    batch_size = (row.get("overrides") or {}).get("train.batch_size", batch_size)
    return _step_seconds(row) / batch_size / row["macs"]["train_form"]


@cache
def _macs(model: FrozenConfigDict, image_size: int) -> int:
    """Of the training form, for one image."""
    net = create(**model.to_dict())
    return count_macs(net, abstract_variables(net), image_size)


def _computed(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's fields decides how long a step takes."""
    return {name: value for name, value in overrides.items() if name not in LENGTH}


def devices_of(device: str | None) -> int:
    """Of a row's words: 16 of `TPU v5e x16`."""
    count = re.search(r" x(\d+)", device or "")
    return int(count[1]) if count else 1
