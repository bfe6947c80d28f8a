"""Accuracy of each class and the confusion matrix: in the report, as a table and as a picture.

Entry [i, j] of a matrix is the number of images of class i that are predicted as class j.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from repvgg_jax.training.evaluation import Metrics

CONFUSION_PICTURE = "confusion.png"

_MOST_DRAWN = 50  # classes; the names of more would be illegible
_MOST_COUNTS = 20  # classes up to which the numbers are written into the cells
_ROWS = 5  # of the table; also the number of confusions in the line below it
_WIDTH = 24  # of a class name


def confusion_fields(metrics: Mapping[str, Metrics]) -> dict[str, Any]:
    """Returns the fields `class_accuracy` and `confusion` of `report.json`, given form -> metrics.

    The accuracy of a class without images is None. Without matrices, there are no fields.
    """
    matrices = {form: m["confusion"] for form, m in metrics.items() if "confusion" in m}
    if not matrices:
        return {}
    return {
        "class_accuracy": {form: class_accuracy(matrix) for form, matrix in matrices.items()},
        "confusion": {form: matrix.tolist() for form, matrix in matrices.items()},
    }


def class_accuracy(matrix: np.ndarray) -> list[float | None]:
    """Returns the share of each class's images that is predicted correctly; None if it has none."""
    pairs = zip(matrix.diagonal().tolist(), matrix.sum(1).tolist(), strict=True)
    return [right / images if images else None for right, images in pairs]


def show_confusion(matrix: np.ndarray, names: Sequence[str], picture: Path | None) -> None:
    """Prints the table of a matrix, and draws it unless `picture` is None."""
    print(confusion_table(matrix, names))
    if picture is not None:
        try:
            draw_confusion(matrix, names, picture)
        except OSError as error:  # the numbers are in the report
            logging.warning("%s: %s", picture, error)


def confusion_table(matrix: np.ndarray, names: Sequence[str]) -> str:
    """Returns a table of the classes of lowest accuracy, and the most frequent confusions.

    Outputs beyond `names` are named by their number.
    """
    names = _names(matrix, names)
    accuracy = class_accuracy(matrix)
    errors = matrix - np.diag(matrix.diagonal())
    wrong = sorted(
        (share, k) for k, share in enumerate(accuracy) if share is not None and share < 1
    )
    if not wrong:
        return "every image is classified correctly"
    title = f"lowest of {len(accuracy) - accuracy.count(None)} classes"
    width = max(len(title), *(len(names[k]) for _, k in wrong[:_ROWS])) + 2
    lines = [f"{title:<{width}}{'accuracy':>9}{'images':>9}   predicted as"]
    for share, k in wrong[:_ROWS]:
        others = [f"{names[j]} ({errors[k, j]:,})" for j in _largest(errors[k], 3)]
        images = matrix[k].sum()
        lines.append(f"{names[k]:<{width}}{share:>9.2%}{images:>9,}   {', '.join(others)}")
    pairs = [divmod(index, len(names)) for index in _largest(errors.ravel(), _ROWS)]
    most = [f"{names[i]} as {names[j]} ({errors[i, j]:,})" for i, j in pairs]
    return "\n".join([*lines, f"most frequent: {', '.join(most)}"])


def draw_confusion(matrix: np.ndarray, names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draws a matrix, each row in percent of its class; does nothing for more than 50 classes.

    The suffix of `path` determines the image format.
    """
    if len(matrix) > _MOST_DRAWN:
        return
    # pyplot would keep global state and might require a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = _names(matrix, names)
    count = len(names)
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 3.2 + 0.34 * max(count, 5)  # inches
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines = {"edgecolors": "0.9", "linewidth": 0.5}
    image = axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=100, **lines)
    figure.colorbar(image, ax=axes, label="images of the class (%)", shrink=0.8)
    centers = np.arange(count) + 0.5
    axes.set_xticks(centers, names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(centers, names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    if count <= _MOST_COUNTS:
        for i, j in zip(*matrix.nonzero(), strict=True):
            color = "white" if share[i, j] > 50 else "black"
            text = f"{matrix[i, j]:,}"
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path)


def _names(matrix: np.ndarray, names: Sequence[str]) -> list[str]:
    """Returns a name of limited length for each output."""
    padded = [*names[: len(matrix)], *map(str, range(len(names), len(matrix)))]
    return [name if len(name) <= _WIDTH else f"{name[: _WIDTH - 3]}..." for name in padded]


def _largest(counts: np.ndarray, most: int) -> list[int]:
    """Returns the indices of the largest positive counts, in descending order."""
    order = np.argsort(-counts, kind="stable")[:most].tolist()
    return [index for index in order if counts[index] > 0]
