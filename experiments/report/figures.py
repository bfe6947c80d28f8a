"""The report's pictures as SVG, the same bytes for the same rows."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.report.labels import Point, label_points
from experiments.report.numbers import Group, Row, Sample
from experiments.sweeps.ablations import SWEEPS
from repvgg_jax.training.curves import smoothed

# Okabe and Ito's palette, told apart with any of the common colour vision deficiencies, without
# its yellow, which is too light for lines; and a marker and dashes for each, as colour is not all.
BLACK, BLUE, VERMILLION = "#000000", "#0072B2", "#D55E00"
COLORS = [BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "s", "^", "D", "v", "P"]
DASHES: list[Any] = ["-", (0, (6, 2)), (0, (3, 1.2)), (0, (7, 2, 1.5, 2)), (0, (1.2, 1.2)), "-."]
_STYLE = {
    "svg.hashsalt": "repvgg_jax",
    "svg.fonttype": "none",  # text stays text: small, sharp and searchable
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that widths are the same everywhere
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "0.9",
}
_WIDTH = 6.6  # inches
_EDGE = 1.08  # of a frame, beside how far what is in it reaches


def draw(name: str, height: float, paint: Callable[[Any], None]) -> str:
    """An SVG to be put into a page, whose ids begin with its name.

    Args:
      name: of the figure, different from that of any other in the page.
      height: in inches.
      paint: draws into the matplotlib figure that it is given.
    """
    # A Figure of one's own, as pyplot would keep global state and may ask for a display.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)  # measures text
        paint(figure)
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()[file.getvalue().index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"^<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf"<svg {_SPACES} \1>", svg)
    return re.sub(r'( id="|"#|url\(#)', rf"\g<1>{re.sub(r'[^a-zA-Z0-9-]', '_', name)}-", svg)


_SPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def cut_off(group: Group) -> bool:
    """Whether a bar or an interval of `draw_differences` goes on beyond its frame."""
    _, samples, _, reach = _differences(group)
    ends = (abs(sample.mean) + (sample.half_width or 0.0) for sample in samples if sample.values)
    return max(ends, default=0.0) > _EDGE * reach


def draw_differences(group: Group) -> str:
    """Bars of the paired differences to the baseline, with each seed and the paper's difference."""
    names, samples, paper, reach = _differences(group)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for y, (name, sample) in enumerate(zip(names, samples, strict=True)):
            if sample.values:
                _bar(axes, y, sample, reach)
            else:
                axes.text(0, y, " no run yet", va="center", color="0.35")
            if name in paper:
                style = dict(marker="D", markersize=5.5, color=VERMILLION, linestyle="none")
                axes.plot(paper[name], y, markerfacecolor="white", zorder=4, **style)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(-_EDGE * reach, _EDGE * reach)
        axes.axvline(0, color=BLACK, linewidth=1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"top-1 minus that of {group.baseline}, same seeds (points)")

    return draw(f"{group.name}-differences", 0.75 + 0.3 * len(names), paint)


def _differences(group: Group) -> tuple[list[str], list[Sample], dict[str, float], float]:
    """Variants, their differences to the baseline and the paper's, and how far the axis goes."""
    names = [v for v in group.runs if v != group.baseline]
    samples = [group.difference(name, group.baseline) for name in names]
    published = SWEEPS[group.sweep].published
    known = [name for name in names if name in published and group.baseline in published]
    paper = {name: published[name] - published[group.baseline] for name in known}
    reach = max([_reach([_extent(s) for s in samples]), *(1.1 * abs(x) for x in paper.values())])
    return names, samples, paper, reach


def _bar(axes: Any, y: int, sample: Sample, reach: float) -> None:
    mean, half, edge = sample.mean, sample.half_width or 0.0, _EDGE * reach
    axes.barh(y, np.clip(mean, -edge, edge), height=0.62, color="#9CC9E6")
    low, high = mean - half, mean + half
    if half and abs(mean) <= reach:
        axes.plot(np.clip([low, high], -edge, edge), [y, y], color=BLACK, linewidth=1.3, zorder=3)
    style = dict(s=15, facecolors="white", edgecolors=BLUE, linewidths=1.1, zorder=3)
    inside = [value for value in sample.values.values() if abs(value) <= reach]
    axes.scatter(inside, [y] * len(inside), **style)
    for side, marker in ((-1, "<"), (1, ">")):
        if max(side * low, side * high) > edge:
            arrow = dict(marker=marker, markersize=5, color=BLACK, linestyle="none", zorder=5)
            axes.plot(side * 1.055 * reach, y, **arrow)
    if abs(mean) > reach:  # the bar is cut off: how far it would go
        text, align = f"{mean:+.1f}".replace("-", "\N{MINUS SIGN}"), "right" if mean > 0 else "left"
        place = math.copysign(reach, mean)
        axes.text(place, y, text, ha=align, va="center", fontsize=8.5, zorder=5)


def _extent(sample: Sample) -> float:
    """How far from zero seeds and interval reach; an interval of twice that may be cut off."""
    largest = max(map(abs, sample.values.values()), default=0.0)
    if (half := sample.half_width) is None:
        return largest
    return max(largest, min(abs(sample.mean) + half, 2 * largest))


def _reach(extents: Sequence[float]) -> float:
    """How far the axis goes: to the largest, unless that would make most of the bars invisible."""
    ordered = sorted(extents)
    if not ordered or not ordered[-1]:
        return 1.0
    usual = ordered[(2 * len(ordered)) // 3] if len(ordered) > 2 else ordered[-1]
    usual = max(usual, 1.0)
    return 1.15 * (ordered[-1] if ordered[-1] <= 4 * usual else 1.6 * usual)


def draw_curves(group: Group) -> str:
    """Training loss and evaluated top-1 against the step: means over seeds with ± 1 std.

    A row of panels holds up to five variants and, as a yardstick, the baseline in black.
    """
    names = [name for name in group.runs if group.runs[name] and name != group.baseline]
    chunks = [names[i : i + 5] for i in range(0, len(names), 5)] or [[]]

    def paint(figure: Any) -> None:
        grid = figure.subplots(len(chunks), 2, squeeze=False, sharex="col")
        for panels, chunk in zip(grid, chunks, strict=True):
            baseline = [group.baseline] if group.runs[group.baseline] else []
            for index, name in enumerate([*baseline, *chunk]):
                _curves(panels, name, list(group.runs[name].values()), index - len(baseline))
            panels[0].set_ylabel("training loss (nats)")
            panels[1].set_ylabel("evaluated top-1 (%)")
            panels[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        for axes in grid[-1]:
            axes.set_xlabel("step")

    return draw(f"{group.name}-curves", 2.3 * len(chunks) + 0.2, paint)


def _curves(panels: Sequence[Any], name: str, rows: Sequence[Row], index: int) -> None:
    """One variant's lines; index -1 is the baseline's."""
    style = dict(color=BLACK if index < 0 else COLORS[index], linewidth=1.4)
    style["linestyle"] = "-" if index < 0 else DASHES[index]
    marker = "X" if index < 0 else MARKERS[index]
    for axes, kind, metric, scale in zip(
        panels, ("train", "eval"), ("loss", "top1"), (1, 100), strict=True
    ):
        steps, values = seed_curves(rows, kind, metric)
        if not len(steps):
            axes.plot([], [], marker=marker, markersize=4, label=name, **style)
            continue
        if kind == "train" and len(steps) >= 10:
            values = np.stack([smoothed(line) for line in values])
        mean = scale * values.mean(0)
        dots = dict(marker=marker, markersize=4, markevery=max(1, len(steps) // 6))
        axes.plot(steps, mean, label=name, **style, **dots)
        if len(values) > 1:
            std = scale * values.std(0, ddof=1)
            axes.fill_between(steps, mean - std, mean + std, color=style["color"], alpha=0.15, lw=0)


def seed_curves(rows: Sequence[Row], kind: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """[steps] and [seeds, steps]: at the steps where every seed that has the curve has a value."""
    lines: list[Mapping[int, float]] = []
    for row in rows:
        curve = (row.get("curves") or {}).get(kind) or {}
        pairs = zip(curve.get("step", ()), curve.get(metric, ()), strict=False)
        if line := {step: value for step, value in pairs if value is not None}:
            lines.append(line)
    steps = sorted(set.intersection(*map(set, lines))) if lines else []
    return np.array(steps, float), np.array([[line[s] for s in steps] for line in lines], float)


def draw_fusion_errors(group: Group) -> str:
    """The largest relative error of each run's fusion, on a logarithmic axis."""
    names = [v for v in group.runs if any(r.get("fusion_error") for r in group.runs[v].values())]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for y, name in enumerate(names):
            errors = [row.get("fusion_error") for _, row in sorted(group.runs[name].items())]
            for i, error in enumerate(error for error in errors if error):
                style = dict(marker="o", color=BLUE, markerfacecolor="white", markersize=5)
                axes.plot(error, y + 0.16 * (i % 3 - 1), linestyle="none", **style)
        axes.axvline(np.finfo(np.float32).eps, color="0.4", linewidth=1, linestyle="--")
        axes.set_xscale("log")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 5e-8), max(high, 2e-5))
        axes.set_xlabel(
            "largest relative error of fusing, a circle a run; dashed: float32's spacing"
        )

    return draw(f"{group.name}-fusion", 0.75 + 0.24 * len(names), paint)


def draw_scatter(
    name: str, points: Sequence[Point], x_label: str, legend: Sequence[tuple[int, str]] = ()
) -> str:
    """Top-1 against a cost, ± 1 std over seeds; the labelled points with their names.

    Args:
      name: of the figure.
      points: their kind picks colour and marker, -1 being the baseline's black.
      x_label: the cost and its unit.
      legend: kind and its name, where the kinds have names.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for point in sorted(points, key=lambda point: point.kind < 0):  # the baseline on top
            color = BLACK if point.kind < 0 else COLORS[point.kind % 6]
            # The second six are hollow.
            face = "white" if point.kind >= 6 else color
            style = dict(color=color, markerfacecolor=face, marker=_marker(point.kind), capsize=0)
            axes.errorbar(
                point.x, point.y, yerr=point.std or None, markersize=6, elinewidth=1, **style
            )
        for kind, text in legend:
            face = "white" if kind >= 6 else COLORS[kind % 6]
            style = dict(color=COLORS[kind % 6], markerfacecolor=face, marker=_marker(kind))
            axes.plot([], [], linestyle="none", markersize=6, label=text, **style)
        if legend:
            figure.legend(frameon=False, loc="outside right upper")
        costs = [point.x for point in points]
        if max(costs) > 4 * min(costs):  # or the dear ones would crowd the rest
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(0.16, 0.12)
        axes.set_xlabel(x_label)
        axes.set_ylabel("top-1 (%)")
        label_points(figure, axes, points)

    crowded = sum(point.labelled for point in points) > 10
    return draw(name, 5.2 if crowded else 3.9, paint)


def _marker(kind: int) -> str:
    return "X" if kind < 0 else MARKERS[kind % 6]
