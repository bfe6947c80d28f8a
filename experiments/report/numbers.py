"""Statistics of rows: means, paired differences, and comparison of orders with a paper's."""

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.expand import PROTOCOLS, SEEDS, extra_overrides, is_current_variant

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """The values of one figure by seed."""

    values: dict[int, float]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float | None:
        """The sample standard deviation, with n - 1; None for fewer than two seeds."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def half_width(self) -> float | None:
        """Half of the mean's 95% interval: t(0.975, n - 1) std / sqrt(n) by Student's t."""
        from scipy.stats import t

        n = len(self.values)
        return float(t.ppf(0.975, n - 1)) * self.std / math.sqrt(n) if n > 1 else None

    @property
    def beyond_noise(self) -> bool | None:
        """True if the interval excludes zero; None if there is no interval."""
        half_width = self.half_width
        return None if half_width is None else abs(self.mean) > half_width


@dataclass(frozen=True)
class Group:
    """The comparable runs of a sweep: one protocol and the same additional overrides.

    Attributes:
      sweep: name of the sweep.
      protocol: name of the protocol.
      shared: config fields given on the command line, set in all runs besides the variant's own.
      runs: rows by variant and seed, in the sweep's order, including variants without runs.
      older: number of rows left out because the same variant and seed was run again.
    """

    sweep: str
    protocol: str
    shared: dict[str, Any]
    runs: dict[str, dict[int, Row]]
    older: int

    @property
    def rows(self) -> list[Row]:
        """All rows of the group."""
        return [row for rows in self.runs.values() for row in rows.values()]

    @property
    def seeds(self) -> int:
        """The number of seeds that each variant should have."""
        return max(len(SEEDS), len({row["seed"] for row in self.rows}))

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with."""
        return SWEEPS[self.sweep].baseline

    @property
    def name(self) -> str:
        """The name used for files and links: `branches-cifar10_full-train.epochs=60`.

        If the fields are too long for a file name, a hash replaces them.
        """
        fields = "-".join(map("=".join, as_text(self.shared)))
        if len(fields) > 100:
            fields = hashlib.sha256(fields.encode()).hexdigest()[:12]
        name = "-".join(filter(None, [self.sweep, self.protocol, fields]))
        return re.sub(r"[^A-Za-z0-9_.=-]+", "_", name)

    def top1(self, variant: str, form: str = "train_form") -> Sample:
        """Returns top-1 in percent of the runs that have the form."""
        rows = self.runs[variant].items()
        return Sample({s: 100 * row["top1"][form] for s, row in rows if form in row["top1"]})

    def difference(self, variant: str, other: str) -> Sample:
        """Returns the paired differences of two variants in train-form top-1, in points."""
        ours, theirs = self.top1(variant).values, self.top1(other).values
        return Sample({seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs})


def as_text(overrides: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns names and values of overrides as text, in alphabetical order."""
    return [(name, json.dumps(value)) for name, value in sorted(overrides.items())]


def group_rows(rows: Iterable[Row]) -> tuple[list[Group], list[tuple[Row, str]]]:
    """Returns the groups, in the order of sweeps and protocols, and other rows with reasons.

    The order of the rows does not matter: among rows of the same variant and seed, the one that
    finished last counts.
    """
    found: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    others = []
    for row in sorted(rows, key=lambda row: json.dumps(row, sort_keys=True)):
        if not is_current_variant(row):
            others.append((row, f"unknown variant {row['name']} of sweep {row['sweep']}"))
        elif row["top1"].get("train_form") is None:
            others.append((row, "has no top-1"))
        else:
            shared = json.dumps(extra_overrides(row), sort_keys=True)
            group = found.setdefault((row["sweep"], row["protocol"], shared), {})
            group.setdefault(row["name"], []).append(row)
    return [_group(*key, found[key]) for key in sorted(found, key=_order)], others


def _order(key: tuple[str, str, str]) -> tuple[Any, ...]:
    sweep, protocol, shared = key
    protocols = list(PROTOCOLS)
    index = protocols.index(protocol) if protocol in protocols else len(protocols)
    return list(SWEEPS).index(sweep), index, protocol, len(json.loads(shared)), shared


def _group(sweep: str, protocol: str, shared: str, rows: dict[str, list[Row]]) -> Group:
    runs: dict[str, dict[int, Row]] = {}
    for variant in SWEEPS[sweep].variants:
        # A later row of a seed replaces an earlier one.
        ordered = sorted(
            rows.get(variant, ()), key=lambda row: (row["seed"], row.get("finished", ""))
        )
        runs[variant] = {row["seed"]: row for row in ordered}
    older = sum(map(len, rows.values())) - sum(map(len, runs.values()))
    return Group(sweep, protocol, json.loads(shared), runs, older)


@dataclass(frozen=True)
class Pair:
    """Two variants, in the order of our results."""

    above: str
    below: str
    ours: Sample  # paired difference in points; it may have no values
    paper: float  # published difference; negative if the paper has the opposite order


@dataclass(frozen=True)
class Ordering:
    """The order of our variants compared with a published one."""

    tau: float | None  # Kendall's tau-b, from -1 (opposite) to 1 (the same); None if of too few
    variants: list[str]  # variants that have runs and a published figure
    pairs: list[Pair]  # all pairs without a tie in either order

    @property
    def reversed(self) -> list[Pair]:
        """The pairs whose order is the opposite in the paper."""
        return [pair for pair in self.pairs if pair.paper < 0]

    @property
    def kept(self) -> list[Pair]:
        """The pairs whose order is the same in the paper."""
        return [pair for pair in self.pairs if pair.paper > 0]


def compare_order(group: Group, published: Mapping[str, float]) -> Ordering:
    """Compares orders by Kendall's tau-b: (C - D) / sqrt((n0 - our ties)(n0 - their ties)).

    n0 is n(n-1)/2. Two variants are ordered by the mean difference over the seeds of both, or by
    their means if they have no seed in common. Tau is left out for fewer than three variants or two
    seeds.
    """
    variants = [name for name in group.runs if group.runs[name] and name in published]
    pairs = []
    ties_ours = ties_theirs = 0
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
    seeds = {seed for name in variants for seed in group.runs[name]}
    enough = len(variants) >= 3 and len(seeds) >= 2
    scale = math.sqrt((n0 - ties_ours) * (n0 - ties_theirs))
    agreement = sum(math.copysign(1, pair.paper) for pair in pairs)
    return Ordering(agreement / scale if enough and scale else None, variants, pairs)


def present_values(rows: Sequence[Row], *path: str) -> list[Any]:
    """Returns a nested value from each row that has it: `present_values(rows, "macs", "fused")`."""
    values = []
    for row in rows:
        value: Any = row
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            values.append(value)
    return values
