"""Figures of the report: what is drawn can be read, and is the same on every machine."""

import re
from pathlib import Path

import numpy as np

from experiments.report.figures import draw_scatter, normalized
from experiments.report.labels import Point
from experiments.sweeps.rows import RESULTS

ROOT = Path(__file__).parents[2]


def test_figures_do_not_depend_on_the_last_bits_of_numbers():
    def svg(x, name):
        shape = f'<g id="axes_1"><path id="{name}" d="M {x} -0.0012345\nL 0.5 -1"/></g>'
        return f'<svg>{shape}<use href="#{name}"/><g clip-path="url(#{name})"/><text>0.12345</text>'

    text = normalized(svg(88.123456, "m91131a0a9e"), "f")
    assert text == normalized(svg(88.123457, "m3ec37fdc62"), "f")
    shape = '<g><path id="f-0" d="M 88.12 0\nL 0.5 -1"/></g>'
    assert text == f'<svg>{shape}<use href="#f-0"/><g clip-path="url(#f-0)"/><text>0.12345</text>'


def test_no_axis_label_is_cut_off():
    figures = [*(ROOT / RESULTS).glob("figures/*.svg"), *(ROOT / "docs/results").glob("*.svg")]
    found = [x for path in figures for x in re.findall(r"rotate\(-90 (\S+) ", path.read_text())]
    assert found
    assert min(map(float, found)) > 9  # of the baseline, in points; the font has 9


def test_labels_of_a_crowd_stay_apart():
    # All in one column, as nets that fuse to the same net.
    points = [Point(f"variant_{i}", 1.0, 70 + i / 20, 0.1, i, True) for i in range(12)]
    svg = draw_scatter("crowd", points, "cost")
    names = re.findall(r'<text style="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>variant_', svg)
    places = np.array(names, float)
    assert len(places) == 12
    for i, a in enumerate(places):
        for b in places[:i]:
            # A label is 50 wide and 8 high.
            assert abs(a[0] - b[0]) > 50 or abs(a[1] - b[1]) > 8
