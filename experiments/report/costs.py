"""The cost of variants, and the points of the scatter plots of accuracy against cost."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.report.labels import Point
from experiments.report.numbers import Group, present_values
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.cost import most_common_device

_THROUGHPUT, _MACS = "images/s as deployed", "MACs of the fused form (millions)"
_PARAMETERS = "parameters of the fused form (millions)"
_STEP = "time of a training step, ms"
_EQUAL = 1.2  # ratio up to which nets have the same MACs
_FEWEST_STEPS = 100  # of a run whose step time is reported
_COMMAND = "`python -m experiments.throughput`"


@dataclass(frozen=True)
class Scatter:
    """The points of a scatter plot, and the cost on its x axis."""

    points: list[Point]
    cost: str  # with its unit
    left_out: list[Point]  # too far below the others to be drawn
    unmeasured: list[str]  # variants that have runs but not this cost

    @property
    def remark(self) -> str:
        """Sentences for the caption: the reason for the cost, and the points not drawn."""
        text = " Most fuse to nets of the same cost." if self.cost.startswith(_STEP) else ""
        if names := [f"{point.name} ({point.y:.1f}%)" for point in self.left_out]:
            text += f" Far below, and not drawn: {', '.join(names)}."
        if self.unmeasured:
            names = ", ".join(self.unmeasured)
            text += f" Not measured yet, and not drawn: {names} ({_COMMAND} measures them)."
        return text


def throughput_setup(group: Group, task: str) -> str | None:
    """Returns the setup of the throughput measurements; None if there is none, or several."""
    found = [row.get("throughput") or {} for row in group.rows]
    setups = {each["measured"] for each in found if task in each}
    return setups.pop() if len(setups) == 1 else None


def throughput_note(group: Group) -> str:
    """Returns a paragraph on figures measured outside the runs; empty if there are none."""
    found = sorted({row["throughput"]["by"] for row in group.rows if row.get("throughput")})
    if not found:
        return ""
    return (
        f"Images/s as deployed and step times are not from these runs: {_COMMAND} measured all "
        f"variants interleaved in one process ({'; '.join(found)}). A variant that cannot be fused "
        "is deployed in its train form."
    )


def largest(group: Group, *path: str) -> dict[str, float]:
    """Returns the largest value of each variant's runs, which differ only if the code changed."""
    found = {name: present_values(list(runs.values()), *path) for name, runs in group.runs.items()}
    return {name: max(values) for name, values in found.items() if values}


def step_times(group: Group) -> tuple[dict[str, float], str]:
    """Returns the milliseconds of a training step of each variant, and how they were measured.

    Interleaved measurements are used if there are any. Otherwise the times are those of the fastest
    seed's run on the most common device, since other load only adds time. Runs of fewer than 100
    steps are left out: a pause of the machine, or one interval, decides their times.
    """
    if how := throughput_setup(group, "training"):
        times = largest(group, "throughput", "training", "seconds")
        return {name: 1000 * seconds for name, seconds in times.items()}, how
    device = most_common_device(group.rows)
    times = {}
    for name, runs in group.runs.items():
        rows = [row for row in runs.values() if row.get("device") == device]
        long_enough = [row for row in rows if (row.get("steps") or 0) >= _FEWEST_STEPS]
        if values := present_values(long_enough, "step_seconds"):
            times[name] = 1000 * min(values)
    if not times:
        return {}, f"left out below {_FEWEST_STEPS} steps"
    alone = len({row["seed"] for row in group.rows}) == 1
    which = "one seed, too few to compare" if alone else "fastest seed"
    return times, f"{which}, {device or 'unknown device'}"


def fused_costs(group: Group) -> tuple[dict[str, float], str]:
    """Returns each variant's cost as deployed, and its label: throughput, or else MACs."""
    if how := throughput_setup(group, "deployed"):
        rates = largest(group, "throughput", "deployed", "images_per_second")
        return rates, f"{_THROUGHPUT} ({how})"
    return {name: n / 1e6 for name, n in largest(group, "macs", "fused").items()}, _MACS


def sweep_scatter(group: Group) -> Scatter | None:
    """Returns a sweep's own scatter plot, with a label at every point.

    If all variants have about the same MACs, the cost is the number of parameters. If most of them
    fuse to the same net, as branches and blocks do, it is the time of a training step; the result
    is None if that was not measured interleaved.
    """
    costs, label = fused_costs(group)
    if label == _MACS and costs and max(costs.values()) <= _EQUAL * min(costs.values()):
        costs = {name: n / 1e6 for name, n in largest(group, "params", "fused").items()}
        label = _PARAMETERS
    if 2 * len(set(costs.values())) < max(len(costs), 4):
        if not throughput_setup(group, "training"):
            return None
        costs, how = step_times(group)
        label = f"{_STEP} ({how})"
    others = [name for name in costs if name != group.baseline]
    points = []
    for name, cost in costs.items():
        top1 = group.top1(name)
        kind = others.index(name) if name in others else -1
        points.append(Point(name, cost, top1.mean, top1.std or 0.0, kind, labelled=True))
    unmeasured = [name for name, runs in group.runs.items() if runs and name not in costs]
    return _without_outliers(points, label, unmeasured)


def common_scatter(groups: Sequence[Group]) -> Scatter | None:
    """Returns one scatter plot of several sweeps, with labels on the Pareto frontier.

    Runs shared by several sweeps are drawn once. The cost is throughput if any group has it.
    The result is None if there are fewer than two points, or most of them have the same cost.
    """
    costs = [fused_costs(group) for group in groups]
    labels = [label for of_variant, label in costs if of_variant]
    label = next((label for label in labels if label.startswith(_THROUGHPUT)), _MACS)
    points, unmeasured, seen = [], {}, set()
    for group, (of_variant, its_label) in zip(groups, costs, strict=True):
        kind = list(SWEEPS).index(group.sweep)  # the same in the figures of all protocols
        for name, runs in group.runs.items():
            hashes = frozenset(row["config_hash"] for row in runs.values())
            full_name = f"{group.sweep}: {name}"
            if hashes and (name not in of_variant or its_label != label):
                unmeasured[hashes] = full_name
            elif hashes and not hashes & seen:
                # No error bars, which would hide the many points.
                top1 = group.top1(name).mean
                points.append(Point(full_name, of_variant[name], top1, 0.0, kind, labelled=False))
                seen |= hashes
    missing = [name for hashes, name in unmeasured.items() if not hashes & seen]
    if len(points) + len(missing) < 2 or 3 * len({point.x for point in points}) < len(points):
        return None
    sign = -1 if label.startswith(_THROUGHPUT) else 1
    return _without_outliers(_label_frontier(points, sign), label, missing)


def _label_frontier(points: Sequence[Point], sign: int) -> list[Point]:
    """Labels the points that no other point equals or beats in both accuracy and cost."""
    labelled = []
    for point in points:
        dominated = any(
            (other.x, other.y) != (point.x, point.y)
            and other.y >= point.y
            and sign * other.x <= sign * point.x
            for other in points
        )
        labelled.append(point._replace(labelled=not dominated))
    return labelled


def _without_outliers(points: Sequence[Point], label: str, unmeasured: list[str]) -> Scatter:
    """Leaves out points whose gap to the best exceeds 8 points and three times the median gap."""
    if not points:
        return Scatter([], label, [], unmeasured)
    best = max(point.y for point in points)
    reach = max(8.0, 3 * (best - statistics.median(point.y for point in points)))
    kept = [point for point in points if best - point.y <= reach]
    left_out = [point for point in points if best - point.y > reach]
    return Scatter(kept, label, left_out, unmeasured)
