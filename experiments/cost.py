"""How many steps runs have, and how long they take by those that are finished."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cache
from typing import Any

from ml_collections import ConfigDict

from experiments.sweeps import Run
from repvgg_jax.config import make_schedule, total_steps
from repvgg_jax.data import load_source
from repvgg_jax.data.prepared import load_prepared


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


def expected_seconds(run: Run, rows: Sequence[dict[str, Any]]) -> float | None:
    """Of the whole run, by the seconds a step of finished runs of its protocol; None for none.

    Those of the same variant with other seeds count where there are some; all of them else.
    """
    rows = [row for row in rows if row["protocol"] == run.protocol and row["steps"]]
    same = [row for row in rows if (row["sweep"], row["name"]) == (run.sweep, run.name)]
    rates = [row["wall_seconds"] / row["steps"] for row in same or rows]
    return statistics.median(rates) * steps_of(run.config()) if rates else None
