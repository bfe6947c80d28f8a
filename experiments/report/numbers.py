"""What the report says of the rows: means, paired differences, and orderings beside the paper's."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.expand import PROTOCOLS, SEEDS, known, strange_fields

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """One figure of several seeds: seed -> value."""

    values: dict[int, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float | None:
        """The sample standard deviation, by n - 1; None of fewer than two."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def half_width(self) -> float | None:
        """Of the mean's 95% interval, t(0.975, n - 1) std / sqrt(n) by Student's t."""
        from scipy.stats import t

        n = len(self.values)
        return float(t.ppf(0.975, n - 1)) * self.std / math.sqrt(n) if n > 1 else None

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the interval leaves out zero; None where there is no interval."""
        half_width = self.half_width
        return None if half_width is None else abs(self.mean) > half_width


@dataclass(frozen=True)
class Group:
    """The runs of one sweep that may be compared: of one protocol, with the same other overrides.

    Attributes:
      sweep, protocol: their names.
      shared: fields that all runs have otherwise than their variants, as a command line gave them.
      runs: variant, in the sweep's order, -> seed -> row; a variant without runs is there too.
      older: rows left out, as the same variant and seed was run again with another config.
    """

    sweep: str
    protocol: str
    shared: dict[str, Any]
    runs: dict[str, dict[int, Row]]
    older: int

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.runs.values() for row in rows.values()]

    @property
    def seeds(self) -> int:
        """How many a variant should have."""
        return max(len(SEEDS), len({row["seed"] for row in self.rows}))

    @property
    def baseline(self) -> str:
        return SWEEPS[self.sweep].baseline

    @property
    def name(self) -> str:
        """`branches-cifar10_full-train.epochs=60`: of its figures and anchors."""
        name = "-".join([self.sweep, self.protocol, *map("=".join, fields(self.shared))])
        return re.sub(r"[^A-Za-z0-9_.=-]+", "_", name)

    def top1(self, variant: str, form: str = "train_form") -> Sample:
        """Top-1 in percent; of no values where that form or any run is missing."""
        rows = self.runs[variant].items()
        return Sample({s: 100 * row["top1"][form] for s, row in rows if form in row["top1"]})

    def difference(self, variant: str, other: str) -> Sample:
        """Top-1 of the train form less the other variant's, in points, of the seeds of both."""
        ours, theirs = self.top1(variant).values, self.top1(other).values
        return Sample({seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs})


def fields(overrides: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Overrides as text, in alphabetical order."""
    return [(name, json.dumps(value)) for name, value in sorted(overrides.items())]


def group_rows(rows: Iterable[Row]) -> tuple[list[Group], list[tuple[Row, str]]]:
    """The groups, in the order of the sweeps and protocols; and other rows, with the reason why.

    The order of the rows doesn't matter: of two of the same variant and seed, the one that
    finished later counts.
    """
    found: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    others = []
    for row in sorted(rows, key=lambda row: json.dumps(row, sort_keys=True)):
        if problem := _problem(row):
            others.append((row, problem))
            continue
        shared = json.dumps(strange_fields(row), sort_keys=True)
        group = found.setdefault((row["sweep"], row["protocol"], shared), {})
        group.setdefault(row["name"], []).append(row)
    return [_group(*key, found[key]) for key in sorted(found, key=_place)], others


def _problem(row: Row) -> str:
    """Why a row is in no table; empty where it is."""
    if not known(row):
        return f"no variant {row['name']} of a sweep {row['sweep']}"
    return "" if row["top1"].get("train_form") is not None else "has no top-1"


def _place(key: tuple[str, str, str]) -> tuple[Any, ...]:
    sweep, protocol, shared = key
    known = list(PROTOCOLS)
    place = known.index(protocol) if protocol in known else len(known)
    return list(SWEEPS).index(sweep), place, protocol, len(json.loads(shared)), shared


def _group(sweep: str, protocol: str, shared: str, rows: dict[str, list[Row]]) -> Group:
    runs: dict[str, dict[int, Row]] = {}
    for variant in SWEEPS[sweep].variants:
        # Of one seed's rows the last in this order stays.
        last = sorted(rows.get(variant, ()), key=lambda row: (row["seed"], row.get("finished", "")))
        runs[variant] = {row["seed"]: row for row in last}
    older = sum(map(len, rows.values())) - sum(map(len, runs.values()))
    return Group(sweep, protocol, json.loads(shared), runs, older)


@dataclass(frozen=True)
class Pair:
    """Two variants that ours has in the other order than the paper, or in the same.

    Attributes:
      above, below: by ours.
      ours: the paired difference in points, of the seeds of both; there may be none.
      paper: the published difference in points, negative where it has them in the other order.
    """

    above: str
    below: str
    ours: Sample
    paper: float


@dataclass(frozen=True)
class Ordering:
    """Our order of the variants against a published one.

    Attributes:
      tau: Kendall's tau-b, 1 for the same order and -1 for the opposite; None where undefined.
      variants: those with both figures.
      pairs: all pairs that neither of the two has equal.
    """

    tau: float | None
    variants: list[str]
    pairs: list[Pair]

    @property
    def reversed(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.paper < 0]

    @property
    def kept(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.paper > 0]


def compare_order(group: Group, published: Mapping[str, float]) -> Ordering:
    """Kendall's tau-b, (C - D) / sqrt((n0 - ties of ours) (n0 - ties of theirs)), n0 = n(n-1)/2.

    Two variants are ordered by the mean difference over the seeds of both; by their means where
    they have no seed in common.
    """
    variants = [name for name in group.runs if group.runs[name] and name in published]
    pairs, ties_ours, ties_theirs = [], 0, 0
    for a, b in combinations(variants, 2):
        paired = group.difference(a, b)
        ours = paired.mean if paired.values else group.top1(a).mean - group.top1(b).mean
        ties_ours += ours == 0
        ties_theirs += published[a] == published[b]
        if ours == 0 or published[a] == published[b]:
            continue
        above, below = (a, b) if ours > 0 else (b, a)
        difference = group.difference(above, below)
        pairs.append(Pair(above, below, difference, published[above] - published[below]))
    n0 = len(variants) * (len(variants) - 1) // 2
    scale = math.sqrt((n0 - ties_ours) * (n0 - ties_theirs))
    agreement = sum(math.copysign(1, pair.paper) for pair in pairs)
    return Ordering(agreement / scale if scale else None, variants, pairs)


def known_values(rows: Sequence[Row], *path: str) -> list[Any]:
    """`known_values(rows, "macs", "fused")`: of the rows that have it, in their order."""
    values = []
    for row in rows:
        value: Any = row
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            values.append(value)
    return values
