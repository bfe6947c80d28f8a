"""Labels beside the points of a scatter plot, placed without overlaps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

_GAP = 6  # typographic points between a data point and its label


class Point(NamedTuple):
    """A point of a scatter plot: top-1 in percent (`y`) against a cost (`x`)."""

    name: str
    x: float
    y: float
    std: float  # of y over seeds, 0 for no error bar
    kind: int  # index of color and marker, -1 for the baseline's
    labelled: bool


def label_points(figure: Any, axes: Any, points: Sequence[Point]) -> None:
    """Draws each label at the nearest free position to the right or left, from the top point down.

    A label that is shifted up or down is connected to its point by a line. The result depends
    only on the points.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # the layout must be known before text can be measured
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
    taken = [_point_box(axes, point, 4.5 * pixel) for point in points]
    style: dict[str, Any] = dict(textcoords="offset points", fontsize=8.5, annotation_clip=False)
    for point in sorted((p for p in points if p.labelled), key=lambda p: (-p.y, p.x, p.name)):
        position = (point.x, point.y)
        text = axes.annotate(point.name, position, fontsize=8.5)
        extent = text.get_window_extent(renderer)
        text.remove()
        width, height = extent.width + 2 * pixel, extent.height
        x, y = axes.transData.transform(position)
        boxes = [
            Bbox.from_bounds(x + dx, y + (shift - 1) * height / 2, width, height)
            for shift in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 8, -8, 10, -10)
            for dx in (_GAP * pixel, -_GAP * pixel - width)
        ]
        best = min(boxes, key=lambda box: _cost(box, taken, axes.bbox))  # the nearest of equals
        taken.append(best)
        line = dict(arrowstyle="-", color="0.6", linewidth=0.7, shrinkA=0, shrinkB=3)
        line["relpos"] = (float(best.x0 < x), 0.5)
        shifted = abs(best.y0 + height / 2 - y) > 0.6 * height
        offset = ((best.x0 - x) / pixel, (best.y0 - y) / pixel)
        arrow = line if shifted else None
        axes.annotate(point.name, position, xytext=offset, arrowprops=arrow, **style)


def _point_box(axes: Any, point: Point, radius: float) -> Any:
    """Returns the box of a point and its error bar, in pixels."""
    from matplotlib.transforms import Bbox

    x, low = axes.transData.transform((point.x, point.y - point.std))
    high = axes.transData.transform((point.x, point.y + point.std))[1]
    middle, half = (low + high) / 2, max((high - low) / 2, radius)
    return Bbox.from_extents(x - radius, middle - half, x + radius, middle + half)


def _cost(box: Any, taken: Sequence[Any], frame: Any) -> float:
    """Returns the area that a box shares with others, and a cost for leaving the frame."""
    shared = 0.0
    for other in taken:
        width = min(box.x1, other.x1) - max(box.x0, other.x0)
        shared += max(width, 0) * max(min(box.y1, other.y1) - max(box.y0, other.y0), 0)
    beyond = max(frame.x0 - box.x0, 0) + max(box.x1 - frame.x1, 0)
    return shared + 20 * (beyond + max(frame.y0 - box.y0, 0) + max(box.y1 - frame.y1, 0))
