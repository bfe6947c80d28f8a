"""Draws docs/figures/fusion_light.svg and fusion_dark.svg: a RepVGG block before and after fusion.

  python -m docs.figures.fusion

The kernels in the figure are those of one channel of a small block with random weights, folded and
added by `repvgg_jax.affine`.
"""

from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

from repvgg_jax.affine import Affine, add, fold_bn, identity, pad_to

INK = {"light": "#24292f", "dark": "#e6edf3"}
MUTED = {"light": "#57606a", "dark": "#9198a1"}
PAPER = {"light": "#ffffff", "dark": "#0d1117"}
BRANCHES = ("#3b82c4", "#d9822b", "#3f9c6c")  # readable on white and on black
FUSED = "#8e6cc0"
SEED = 24  # of kernels whose printed digits add up
ROWS = (5.1, 3.0, 0.9)
CONV_3X3 = "3\N{MULTIPLICATION SIGN}3 conv"
NAMES = (CONV_3X3, "1\N{MULTIPLICATION SIGN}1 conv", "identity")


def folded_kernels(seed: int = SEED) -> list[np.ndarray]:
    """Returns the 3x3 kernels of the three branches and of their sum, from channel 0 to itself."""
    rng = np.random.default_rng(seed)
    channels = 4

    def folded(branch: Affine) -> Affine:
        params = {
            "scale": jnp.asarray(rng.uniform(0.5, 1.5, channels)),
            "bias": jnp.asarray(rng.normal(0, 0.2, channels)),
        }
        stats = {
            "mean": jnp.asarray(rng.normal(0, 0.2, channels)),
            "var": jnp.asarray(rng.uniform(0.5, 1.5, channels)),
        }
        return pad_to((3, 3), fold_bn(branch, params, stats))

    kernel = jnp.asarray(rng.normal(0, 0.5, (3, 3, channels, channels)))
    pointwise = jnp.asarray(rng.normal(0, 0.7, (1, 1, channels, channels)))
    branches = [folded(Affine(kernel)), folded(Affine(pointwise)), folded(identity(kernel))]
    return [np.asarray(branch.kernel[:, :, 0, 0]) for branch in [*branches, add(*branches)]]


class Drawing:
    """The axes of one figure, with its colors for light or dark pages."""

    def __init__(self, theme: str):
        self.theme = theme
        self.ink = INK[theme]
        self.figure, self.axes = plt.subplots(figsize=(9.6, 3.75))
        self.axes.set(xlim=(0, 19.2), ylim=(-0.55, 6.95), aspect="equal")
        self.axes.axis("off")
        self.figure.subplots_adjust(0, 0, 1, 1)

    def text(self, x: float, y: float, text: str, **style: object) -> None:
        """Writes text centered at (x, y)."""
        style = {"color": self.ink, "ha": "center", "va": "center", "size": 10, **style}
        self.axes.text(x, y, text, **style)

    def box(self, x: float, y: float, width: float, text: str, color: str) -> None:
        """Draws a labeled box whose left edge is at x and whose middle is at y."""
        patch = FancyBboxPatch(
            (x, y - 0.45),
            width,
            0.9,
            boxstyle="round,pad=0,rounding_size=0.15",
            edgecolor=color,
            facecolor=(*matplotlib.colors.to_rgb(color), 0.16),
            linewidth=1.4,
        )
        self.axes.add_patch(patch)
        self.text(x + width / 2, y, text)

    def line(self, *points: tuple[float, float], arrow: bool = False) -> None:
        """Draws a line through the points; an arrow ends at the last one."""
        x, y = zip(*points, strict=True)
        self.axes.plot(x, y, color=MUTED[self.theme], linewidth=1.3, solid_capstyle="round")
        if arrow:
            self.axes.annotate(
                "",
                xy=points[-1],
                xytext=points[-2],
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": MUTED[self.theme],
                    "linewidth": 1.3,
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
            )

    def plus(self, x: float, y: float) -> None:
        """Draws the sum of the branches at (x, y)."""
        circle = Circle((x, y), 0.34, edgecolor=self.ink, facecolor="none", linewidth=1.3)
        self.axes.add_patch(circle)
        self.text(x, y, "+", size=12)

    def kernel(self, x: float, y: float, values: np.ndarray, color: str, cell: float) -> None:
        """Draws a 3x3 kernel centered at (x, y); opacity is magnitude."""
        largest = 1.9
        for (row, column), value in np.ndenumerate(values):
            corner = (x + (column - 1.5) * cell, y + (0.5 - row) * cell)
            opacity = min(abs(value) / largest, 1) ** 0.7
            self.axes.add_patch(
                Rectangle(
                    corner,
                    cell,
                    cell,
                    facecolor=(*matplotlib.colors.to_rgb(color), opacity),
                    edgecolor=MUTED[self.theme],
                    linewidth=0.8,
                )
            )
            number = f"{value:.1f}".replace("-", "\N{MINUS SIGN}") if value else "0"
            self.text(corner[0] + cell / 2, corner[1] + cell / 2, number, size=13 * cell)


def draw(theme: str) -> None:
    """Writes fusion_<theme>.svg."""
    kernels = folded_kernels()
    drawing = Drawing(theme)
    drawing.text(4.7, 6.5, "Train form", weight="bold", size=11)
    drawing.text(
        11.6, 6.5, "Each branch as a 3\N{MULTIPLICATION SIGN}3 kernel", weight="bold", size=11
    )
    drawing.text(16.1, 6.5, "Fused form", weight="bold", size=11)

    drawing.text(0.45, 3.0, "x", style="italic", size=13)
    for row, name, color in zip(ROWS, NAMES, BRANCHES, strict=True):
        drawing.line((0.8, 3.0), (1.3, 3.0), (1.3, row), (1.9, row), arrow=True)
        drawing.box(1.9, row, 2.3, name, color)
        drawing.line((4.2, row), (4.7, row), arrow=True)
        drawing.box(4.7, row, 1.3, "BN", color)
    drawing.line((6.0, ROWS[1]), (6.6, ROWS[1]), arrow=True)
    for row, end in ((ROWS[0], 3.34), (ROWS[2], 2.66)):
        drawing.line((6.0, row), (6.94, row), (6.94, end), arrow=True)
    drawing.plus(6.94, 3.0)
    drawing.line((7.28, 3.0), (7.6, 3.0), arrow=True)
    drawing.box(7.6, 3.0, 1.5, "ReLU", MUTED[theme])

    for row, values, color in zip(ROWS, kernels[:3], BRANCHES, strict=True):
        drawing.kernel(11.6, row, values, color, cell=0.53)
    for middle in (4.05, 1.95):
        drawing.text(11.6, middle, "+", size=13)
    drawing.text(13.5, 3.0, "=", size=16)

    drawing.kernel(16.1, 3.9, kernels[3], FUSED, cell=0.85)
    drawing.text(14.2, 0.9, "x", style="italic", size=13)
    drawing.line((14.5, 0.9), (14.95, 0.9), arrow=True)
    drawing.box(14.95, 0.9, 2.3, CONV_3X3, FUSED)
    drawing.line((17.25, 0.9), (17.6, 0.9), arrow=True)
    drawing.box(17.6, 0.9, 1.5, "ReLU", MUTED[theme])
    drawing.line((16.1, 2.55), (16.1, 1.4))

    file = Path(__file__).with_name(f"fusion_{theme}.svg")
    drawing.figure.savefig(file, transparent=True, metadata={"Date": None})
    plt.close(drawing.figure)


if __name__ == "__main__":
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fusion"
    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    for chosen in ("light", "dark"):
        draw(chosen)
