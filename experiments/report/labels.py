"""Names beside the points of a scatter, where they cover neither each other nor a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Point(NamedTuple):
    """A point of a scatter: `y` with its standard deviation over seeds, 0 where there is none.

    `kind` picks colour and marker, -1 being the baseline's.
    """

    name: str
    x: float
    y: float
    std: float
    kind: int
    labelled: bool


def label_points(figure: Any, axes: Any, points: Sequence[Point]) -> None:
    """Puts each label at the nearest free place, with a line to its point where that is far.

    Places are tried from near to far and from the right round, point by point from the top: the
    same points give the same picture.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles the layout, and so where a point is
    figure.set_layout_engine("none")
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
    places = [tuple(axes.transData.transform((point.x, point.y))) for point in points]
    taken = [_box_of(axes, point, 4.5 * pixel) for point in points]
    for point in sorted((p for p in points if p.labelled), key=lambda p: (-p.y, p.x, p.name)):
        x, y = axes.transData.transform((point.x, point.y))
        text = axes.annotate(point.name, (point.x, point.y), fontsize=8.5)
        extent = text.get_window_extent(renderer)
        width, height = extent.width + 2 * pixel, extent.height
        best = None
        for dx, dy in _places(width, height, pixel):
            box = Bbox.from_bounds(x + dx, y + dy, width, height)
            cost = sum(_overlap(box, other) for other in taken) + _outside(box, axes.bbox)
            cost += 200 * sum(_crosses(x, y, box, other) for other in taken)
            nearer = _nearer((x, y), box, places)
            cost += 100 * nearer
            if best is None or cost < best[0]:
                best = cost, dx, dy, box, nearer
            if not cost:
                break
        _, dx, dy, box, nearer = best
        taken.append(box)
        text.remove()
        far = max(abs(dx + width / 2) - width / 2, abs(dy + height / 2) - height / 2) > 12 * pixel
        end = _nearest(x, y, box)
        line = dict(arrowstyle="-", color="0.6", linewidth=0.7, shrinkA=0, shrinkB=3)
        line["relpos"] = (end[0] - box.x0) / width, (end[1] - box.y0) / height
        axes.annotate(
            point.name,
            (point.x, point.y),
            xytext=(dx / pixel, dy / pixel),
            textcoords="offset points",
            fontsize=8.5,
            annotation_clip=False,
            arrowprops=line if far or nearer else None,
        )


def _box_of(axes: Any, point: Point, radius: float) -> Any:
    """What a point and its error bar cover, in pixels."""
    from matplotlib.transforms import Bbox

    x, low = axes.transData.transform((point.x, point.y - point.std))
    high = axes.transData.transform((point.x, point.y + point.std))[1]
    middle, half = (low + high) / 2, max((high - low) / 2, radius)
    return Bbox.from_extents(x - radius, middle - half, x + radius, middle + half)


def _places(width: float, height: float, pixel: float) -> list[tuple[float, float]]:
    """Offsets of a label's lower left corner from its point, from near to far."""
    places = []
    for radius in (6, 10, 16, 24, 34, 46, 60, 76):
        for step in range(16):
            # 0, 1, -1, 2, -2 ...: right first, then both ways round.
            angle = math.pi / 8 * ((step + 1) // 2) * (1 if step % 2 else -1)
            cos, sin = math.cos(angle), math.sin(angle)
            x, y = radius * pixel * cos, radius * pixel * sin
            # The label's nearest edge, not its corner, stands at the radius.
            places.append((x - width * (1 - cos) / 2, y - height * (1 - sin) / 2))
    return places


def _overlap(a: Any, b: Any) -> float:
    """The area that two boxes share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    return max(width, 0) * max(min(a.y1, b.y1) - max(a.y0, b.y0), 0)


def _crosses(x: float, y: float, box: Any, other: Any) -> bool:
    """Whether the line from a point to its label goes through another point or label."""
    from matplotlib.path import Path

    if other.contains(x, y):  # its own, or one that stands on it
        return False
    return Path([(x, y), _nearest(x, y, box)]).intersects_bbox(other, filled=True)


def _nearer(own: tuple[float, float], box: Any, places: Sequence[tuple[float, float]]) -> int:
    """How many other points a label stands as near to as to its own, and might be taken for."""
    distance = math.dist(own, _nearest(*own, box))
    return sum(
        place != own and math.dist(place, _nearest(*place, box)) < 1.3 * distance
        for place in places
    )


def _nearest(x: float, y: float, box: Any) -> tuple[float, float]:
    """The box's point that is nearest to (x, y), where the line to a label ends."""
    return min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)


def _outside(box: Any, frame: Any) -> float:
    """How far a box reaches over the frame, in pixels, weighed as area is."""
    over = max(frame.x0 - box.x0, 0) + max(box.x1 - frame.x1, 0)
    return 20 * (over + max(frame.y0 - box.y0, 0) + max(box.y1 - frame.y1, 0))
