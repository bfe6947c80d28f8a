"""Training curves of a run: loss and accuracy against the step."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Okabe and Ito's palette, distinguishable with all common color vision deficiencies.
_BLUE, _VERMILLION = "#0072B2", "#D55E00"


def draw_curves(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draws loss and top-1 (percent) of training and evaluation against the step.

    `rows` come from `read_metrics`; kinds of rows and metrics may be missing. The suffix of `path`
    determines the image format.
    """
    # pyplot would keep global state and might require a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # inches
    panels = (("loss", "loss (nats)", 1.0), ("top1", "top-1 accuracy (%)", 100.0))
    for axes, (name, label, scale) in zip(figure.subplots(1, 2), panels, strict=True):
        steps, values = _series(rows, "train", name)
        if smooth := len(values) >= 10:
            axes.plot(steps, scale * values, color=_BLUE, alpha=0.25, linewidth=0.8)
        if len(values):
            line = scale * (smoothed(values) if smooth else values)
            dot = "o" if len(values) == 1 else None
            title = "training, smoothed" if smooth else "training"
            axes.plot(steps, line, color=_BLUE, linewidth=1.8, marker=dot, label=title)
        steps, values = _series(rows, "eval", name)
        if len(values):
            # Dashed, so that the lines are distinguishable in black and white.
            style = {"linestyle": "--", "linewidth": 1.4, "marker": "o", "markersize": 4}
            axes.plot(steps, scale * values, color=_VERMILLION, label="evaluation", **style)
        axes.set_xlabel("training step")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.savefig(path)


def _series(rows: Sequence[Mapping[str, Any]], kind: str, name: str) -> np.ndarray:
    """Returns the steps and values [2, points] of a metric, omitting rows without a value."""
    rows = [row for row in rows if row["kind"] == kind and row.get(name) is not None]
    return np.array([[row["step"] for row in rows], [row[name] for row in rows]], float)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Returns a centered weighted mean over a tenth of the curve, without bias at its ends."""
    window = np.hanning(max(5, len(values) // 10 | 1) + 2)[1:-1]
    weights = np.convolve(np.ones_like(values), window, mode="same")
    return np.convolve(values, window, mode="same") / weights
