"""Draws the figures of the report as SVG; the same rows give the same bytes."""

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

# Okabe and Ito's palette, distinguishable with the common color vision deficiencies, without its
# yellow, which is too light for lines. Markers and dashes differ too.
BLACK, BLUE, VERMILLION = "#000000", "#0072B2", "#D55E00"
COLORS = [BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "s", "^", "D", "v", "P"]
DASHES: list[Any] = ["-", (0, (6, 2)), (0, (3, 1.2)), (0, (7, 2, 1.5, 2)), (0, (1.2, 1.2)), "-."]
_STYLE = {
    "svg.hashsalt": "repvgg_jax",
    "svg.fonttype": "none",  # text stays text: small, sharp and searchable
    "font.family": "DejaVu Sans",  # bundled with matplotlib, so that widths are the same everywhere
    "font.size": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
}
_WIDTH = 6.6  # inches
_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def draw(name: str, height: float, paint: Callable[[Any], None]) -> str:
    """Returns the SVG drawn by `paint`; its height is in inches."""
    # pyplot would keep global state and might require a display.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)  # needed to measure text
        paint(figure)
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=no_metadata)
    svg = file.getvalue()[file.getvalue().index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"^<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf"<svg {_NAMESPACES} \1>", svg)
    return normalized(svg, re.sub(r"[^a-zA-Z0-9-]", "_", name))


def normalized(svg: str, name: str) -> str:
    """Returns an SVG without the last bits of its numbers, which differ between processors.

    Coordinates are rounded to two decimals. Matplotlib hashes all bits for its ids; they become
    numbers after the figure's name, so that one page can contain several figures.
    """
    used = dict.fromkeys(re.findall(r'(?:"#|url\(#)([^")]+)', svg))
    numbers = {old: f"{name}-{i}" for i, old in enumerate(used)}

    def number(match: re.Match[str]) -> str:
        return f' id="{numbers[match[1]]}"' if match[1] in numbers else ""

    def shorten(tag: re.Match[str]) -> str:
        return re.sub(r"-?\d+\.\d{3,}", lambda x: f"{round(float(x[0]), 2) + 0:g}", tag[0])

    svg = re.sub(r' id="([^"]*)"', number, svg)
    svg = re.sub(r'("#|url\(#)([^")]+)', lambda match: match[1] + numbers[match[2]], svg)
    return re.sub(r"<[^>]*>", shorten, svg)


def draw_differences(group: Group) -> str:
    """Draws bars of the paired differences to the baseline, with each seed's and the paper's."""
    names = [name for name in group.runs if name != group.baseline]
    published = SWEEPS[group.sweep].published
    paper = {}
    if group.baseline in published:
        shared = [name for name in names if name in published]
        paper = {name: published[name] - published[group.baseline] for name in shared}
    samples = {name: group.difference(name, group.baseline) for name in names}
    limit = _axis_limit([sample.values.values() for sample in samples.values()], paper.values())

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for y, name in enumerate(names):
            if samples[name].values:
                _bar(axes, y, samples[name], limit)
            else:
                axes.text(0, y, " no run yet", va="center", color="0.35")
            if name in paper:
                style = dict(marker="D", markersize=5.5, color=VERMILLION, linestyle="none")
                axes.plot(paper[name], y, markerfacecolor="white", zorder=4, **style)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(-limit, limit)
        axes.axvline(0, color=BLACK, linewidth=1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"top-1 minus that of {group.baseline}, same seeds (points)")

    return draw(f"{group.name}-differences", 0.75 + 0.3 * len(names), paint)


def _bar(axes: Any, y: int, sample: Sample, limit: float) -> None:
    """Draws one variant's mean, interval and seeds; a mean beyond the limit is printed as text."""
    axes.barh(y, sample.mean, height=0.62, color="#9CC9E6")
    if abs(sample.mean) > limit:
        text = f"{sample.mean:+.1f}".replace("-", "\N{MINUS SIGN}")
        side = math.copysign(0.98 * limit, sample.mean)
        axes.text(side, y, text, ha="right" if side > 0 else "left", va="center", fontsize=8.5)
        return
    if half := sample.half_width:
        ends = [sample.mean - half, sample.mean + half]
        axes.plot(ends, [y, y], color=BLACK, linewidth=1.3, zorder=3)
    values = list(sample.values.values())
    style = dict(s=15, facecolors="white", edgecolors=BLUE, linewidths=1.1, zorder=3)
    axes.scatter(values, [y] * len(values), **style)


def _axis_limit(seeds: Sequence[Any], paper: Any) -> float:
    """Returns the half width of an axis for differences.

    It covers the paper's values, and all seeds unless the largest would make most bars invisible.
    """
    extents = sorted(max(map(abs, values), default=0.0) for values in seeds)
    usual = max(extents[(2 * len(extents)) // 3] if len(extents) > 2 else extents[-1], 1.0)
    largest = extents[-1] if extents[-1] <= 4 * usual else 1.6 * usual
    return 1.4 * max(largest, *map(abs, paper), 0.5)


def draw_curves(group: Group) -> str:
    """Draws training loss and evaluated top-1 against the step: means over seeds ± 1 std.

    Each row of panels shows up to five variants and the baseline in black.
    """
    names = [name for name in group.runs if group.runs[name] and name != group.baseline]
    chunks = [names[i : i + 5] for i in range(0, len(names), 5)] or [[]]

    def paint(figure: Any) -> None:
        grid = figure.subplots(len(chunks), 2, squeeze=False, sharex="col")
        for panels, chunk in zip(grid, chunks, strict=True):
            if group.runs[group.baseline]:
                style = dict(color=BLACK, linestyle="-", marker="X")
                _curves(panels, group.baseline, group, style)
            for name, color, dashes, marker in zip(chunk, COLORS, DASHES, MARKERS, strict=False):
                _curves(panels, name, group, dict(color=color, linestyle=dashes, marker=marker))
            panels[0].set_ylabel("training loss (nats)")
            panels[1].set_ylabel("evaluated top-1 (%)")
            for axes in panels:
                _fix_ticks(axes, 6)
            panels[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        for axes in grid[-1]:
            axes.set_xlabel("step")

    return draw(f"{group.name}-curves", 2.3 * len(chunks) + 0.2, paint)


def _fix_ticks(axes: Any, intervals: int) -> None:
    """Makes the number of ticks of the y axis independent of its height.

    The layout measures their texts before it sets the height: if that changed 1.5 to 1.50, the
    axis label would be cut off.
    """
    axes.locator_params(axis="y", nbins=intervals)


def _curves(panels: Sequence[Any], name: str, group: Group, style: dict[str, Any]) -> None:
    """Draws one variant's loss into the first panel and its top-1 into the second."""
    rows = list(group.runs[name].values())
    for axes, kind, metric, scale in (
        (panels[0], "train", "loss", 1),
        (panels[1], "eval", "top1", 100),
    ):
        steps, values = seed_curves(rows, kind, metric)
        if kind == "train" and len(steps) >= 10:
            values = np.stack([smoothed(line) for line in values])
        mean = scale * values.mean(0) if len(steps) else []
        every = max(1, len(steps) // 6)
        axes.plot(steps, mean, label=name, linewidth=1.4, markersize=4, markevery=every, **style)
        if len(values) > 1:
            std = scale * values.std(0, ddof=1)
            axes.fill_between(steps, mean - std, mean + std, color=style["color"], alpha=0.15, lw=0)


def seed_curves(rows: Sequence[Row], kind: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps [steps] and values [seeds, steps], at the steps common to all seeds."""
    lines: list[Mapping[int, float]] = []
    for row in rows:
        curve = (row.get("curves") or {}).get(kind) or {}
        pairs = zip(curve.get("step", ()), curve.get(metric, ()), strict=False)
        if line := {step: value for step, value in pairs if value is not None}:
            lines.append(line)
    steps = sorted(set.intersection(*map(set, lines))) if lines else []
    return np.array(steps, float), np.array([[line[s] for s in steps] for line in lines], float)


def draw_fusion_errors(group: Group) -> str:
    """Draws the largest relative error of each run's fusion, on a logarithmic axis."""
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
        axes.set_xlabel("largest relative error of fusion (dashed: float32 machine epsilon)")

    return draw(f"{group.name}-fusion", 0.75 + 0.24 * len(names), paint)


def draw_scatter(
    name: str, points: Sequence[Point], x_label: str, legend: Sequence[tuple[int, str]] = ()
) -> str:
    """Draws top-1 against a cost, ± 1 std over seeds; `legend` names the kinds."""
    from matplotlib.ticker import LogLocator, NullLocator

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for point in sorted(points, key=lambda point: point.kind < 0):  # the baseline on top
            style = _point_style(point.kind)
            axes.errorbar(point.x, point.y, yerr=point.std or None, elinewidth=1, **style)
        for kind, text in legend:
            axes.plot([], [], linestyle="none", label=text, **_point_style(kind))
        if legend:
            figure.legend(frameon=False, loc="outside right upper")
        costs = [point.x for point in points]
        if max(costs) > 4 * min(costs):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.margins(0.16, 0.12)
        _fix_ticks(axes, 8)
        axes.set_xlabel(x_label)
        axes.set_ylabel("top-1 (%)")
        label_points(figure, axes, points)

    crowded = sum(point.labelled for point in points) > 10
    return draw(name, 5.2 if crowded else 3.9, paint)


def _point_style(kind: int) -> dict[str, Any]:
    """Returns the matplotlib style of a kind of point: six filled styles, then six hollow ones."""
    if kind < 0:
        return dict(color=BLACK, marker="X", markersize=6)
    color = COLORS[kind % 6]
    face = "white" if kind >= 6 else color
    return dict(color=color, marker=MARKERS[kind % 6], markerfacecolor=face, markersize=6)
