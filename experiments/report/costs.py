"""Accuracy against cost: what a variant costs, and the points of the scatters."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.report.labels import Point
from experiments.report.numbers import Group, known_values
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.cost import usual_device

_THROUGHPUT, _MACS = "images/s as deployed", "MACs of the fused form (millions)"
_STEP = "time of a training step, ms"


@dataclass(frozen=True)
class Scatter:
    """Points, the cost that they are drawn against, and what to say of both.

    `left_out`: points so far below the rest that they would hide its differences.
    `unmeasured`: names of variants that have runs, and no such cost.
    """

    points: list[Point]
    cost: str
    left_out: list[Point]
    unmeasured: list[str]

    @property
    def remark(self) -> str:
        """Why it is against time, and what is not drawn; nothing where neither is so."""
        text = " Most of these fuse to nets of one cost." if self.cost.startswith(_STEP) else ""
        if names := [f"{point.name} ({point.y:.1f}%)" for point in self.left_out]:
            text += f" Far below, and not drawn: {', '.join(names)}."
        if self.unmeasured:
            names, command = (
                ", ".join(self.unmeasured),
                "`python -m experiments.throughput`",
            )
            text += f" Not measured yet, and not drawn: {names} ({command} measures them)."
        return text


def measured(group: Group, task: str) -> str | None:
    """How throughput was measured, of the rows that have it; None where none has, or not alike."""
    found = [row.get("throughput") or {} for row in group.rows]
    words = {each["measured"] for each in found if task in each}
    return words.pop() if len(words) == 1 else None


def measuring(group: Group) -> str:
    """What a reader should know of figures that are not of the runs themselves; empty of none."""
    found = sorted({row["throughput"]["by"] for row in group.rows if row.get("throughput")})
    if not found:
        return ""
    return (
        "Images/s as deployed and the steps beside them are not of these runs: `python -m "
        "experiments.throughput` measured all variants by turns in one process "
        f"({'; '.join(found)}). What cannot be fused is deployed in its train form."
    )


def largest(group: Group, *path: str) -> dict[str, float]:
    """Variant -> the largest of its runs' figures, which are one unless the code has changed."""
    found = {name: known_values(list(runs.values()), *path) for name, runs in group.runs.items()}
    return {name: max(values) for name, values in found.items() if values}


def step_times(group: Group) -> tuple[dict[str, float], str]:
    """Variant -> milliseconds of a training step, and how they were measured.

    By turns, of those that have such a figure. Where none has, by the runs themselves, of the
    fastest seed on the usual device: what else the machine does only adds, but differs from hour to
    hour.
    """
    if how := measured(group, "training"):
        times = largest(group, "throughput", "training", "seconds")
        return {name: 1000 * seconds for name, seconds in times.items()}, how
    device = usual_device(group.rows)
    found = {
        name: known_values(
            [row for row in runs.values() if row.get("device") == device], "step_seconds"
        )
        for name, runs in group.runs.items()
    }
    times = {name: 1000 * min(values) for name, values in found.items() if values}
    return times, f"fastest seed, {device or 'unknown device'}"


def fused_costs(group: Group) -> tuple[dict[str, float], str]:
    """Variant -> what its deployed form costs, and the name of that: the throughput of those that
    have one, the fused form's MACs where none has.
    """
    if how := measured(group, "deployed"):
        rates = largest(group, "throughput", "deployed", "images_per_second")
        return rates, f"{_THROUGHPUT} ({how})"
    return {name: n / 1e6 for name, n in largest(group, "macs", "fused").items()}, _MACS


def sweep_scatter(group: Group) -> Scatter:
    """A sweep's own scatter, every point named.

    Where most nets fuse to the same, as those of branches and blocks do, they would stand in one
    column; then it is against what their training costs.
    """
    costs, label = fused_costs(group)
    if 2 * len(set(costs.values())) < max(len(costs), 4):
        costs, how = step_times(group)
        label = f"{_STEP} ({how})"
    others = [name for name in costs if name != group.baseline]
    points = []
    for name, cost in costs.items():
        top1, kind = group.top1(name), others.index(name) if name in others else -1
        points.append(Point(name, cost, top1.mean, top1.std or 0.0, kind, labelled=True))
    unmeasured = [name for name, runs in group.runs.items() if runs and name not in costs]
    return _without_fallen(points, label, unmeasured)


def common_scatter(groups: Sequence[Group]) -> Scatter | None:
    """One scatter of several sweeps, a kind each; named are the nets that no other beats.

    Runs that several sweeps share are drawn once. Throughput where any group has it; None where no
    group has a cost.
    """
    costs = [fused_costs(group) for group in groups]
    labels = [label for of_variant, label in costs if of_variant]
    if not labels:
        return None
    label = next((label for label in labels if label.startswith(_THROUGHPUT)), labels[0])
    points, unmeasured, seen = [], {}, set()
    for group, (of_variant, its_label) in zip(groups, costs, strict=True):
        kind = list(SWEEPS).index(group.sweep)  # the same in every protocol's picture
        for name, runs in group.runs.items():
            hashes = frozenset(row["config_hash"] for row in runs.values())
            words = f"{group.sweep}: {name}"
            if hashes and (name not in of_variant or its_label != label):
                unmeasured[hashes] = words
            elif hashes and not hashes & seen:
                # Without their deviations, which in such a crowd would be a thicket.
                top1 = group.top1(name).mean
                points.append(Point(words, of_variant[name], top1, 0.0, kind, labelled=False))
                seen |= hashes
    lacking = [words for hashes, words in unmeasured.items() if not hashes & seen]
    sign = -1 if label.startswith(_THROUGHPUT) else 1
    return _without_fallen(_name_frontier(points, sign), label, lacking)


def _name_frontier(points: Sequence[Point], sign: int) -> list[Point]:
    """With the names of those that no other is as good and as cheap as, and better in one."""
    named = []
    for point in points:
        here = (-point.y, sign * point.x)
        others = ((-other.y, sign * other.x) for other in points)
        beaten = any(o[0] <= here[0] and o[1] <= here[1] and o != here for o in others)
        named.append(point._replace(labelled=not beaten))
    return named


def _without_fallen(points: Sequence[Point], label: str, unmeasured: list[str]) -> Scatter:
    """Leaves out what lies below the best by over 8 points and by three times what half do."""
    if not points:
        return Scatter([], label, [], unmeasured)
    best = max(point.y for point in points)
    reach = max(8.0, 3 * (best - statistics.median(point.y for point in points)))
    kept = [point for point in points if best - point.y <= reach]
    left_out = [point for point in points if best - point.y > reach]
    return Scatter(kept, label, left_out, unmeasured)
