"""The page of the comparison, docs/results/comparison.md, and its figures."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from experiments.report.figures import draw_scatter
from experiments.report.labels import Point
from experiments.studies.comparison.measured import (
    Measured,
    Setup,
    measured_nets,
    of_setup,
    setups,
)
from experiments.studies.comparison.nets import COUNTS
from experiments.studies.comparison.published import (
    PAPERS_GPU,
    PUBLISHED,
    REFERENCE,
    TABLE_5,
    TABLES_4_AND_5,
)
from experiments.studies.comparison.sizes import Row
from experiments.studies.comparison.tables import (
    count_table,
    guideline_tables,
    kernel_tables,
    label,
    pair_table,
    published_speed,
    speed_table,
    verdict,
)
from experiments.studies.pages import write_section
from repvgg_jax.runtime.files import replace_text

FILE = "comparison"  # of the page and the rows, and the start of the figures' names
_UNCOUNTED = (
    'Parameters and operations are "-" where they have not been counted: the same call with '
    "`--only=counts` adds them."
)
_CALLS = (
    "The calls that measured these rows; `--out` is added, so that they measure again, with rows "
    "and a page of their own:"
)
_FAMILIES = tuple(dict.fromkeys(published.family for published in PUBLISHED.values()))


def sections(rows: Sequence[Row], setup: Setup) -> list[str]:
    """Returns the paragraphs and tables of a setup, without figures."""
    texts = []
    for measured in measured_nets(rows, setup):
        about = [
            f"Batch {measured.batch}{measured.at_size}",
            *_versions([*measured.forward.values()]),
        ]
        texts += [f"{', '.join(about)}.", speed_table(measured)]
        if not measured.is_counted:
            texts.append(_UNCOUNTED)
        texts.append(pair_table(measured))
        texts.append(verdict(measured, setup))
    own = of_setup(rows, setup)
    return [text for text in [*texts, *kernel_tables(own), *guideline_tables(own)] if text]


def write_page(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes the measured section of the page and the figures, and returns their paths."""
    name = f"{FILE}-1080ti"
    speeds = {net: published_speed(net, REFERENCE) or 0.0 for net in TABLES_4_AND_5}
    figures = {name: _scatter(name, speeds, f"{label(REFERENCE)}'s, {PAPERS_GPU}")}
    texts = ["## Counts", count_table(rows)] if any(row["part"] == COUNTS for row in rows) else []
    texts += ["## The paper's GPU", _picture(name, f"Tables 4 and 5: {PAPERS_GPU}")]
    for setup in setups(rows):
        texts.append(f"## {setup}")
        for measured in measured_nets(rows, setup):
            name = _figure_name(setup, measured)
            where = f"{label(measured.reference)}'s, {setup}, batch {measured.batch}"
            if measured.image_size is None and (speeds := _speeds(measured)):
                figures[name] = _scatter(name, speeds, where)
                texts.append(_picture(name, f"{setup}, batch {measured.batch}, fused form"))
        texts += [*sections(rows, setup), _calls(of_setup(rows, setup))]
    page = folder / f"{FILE}.md"
    write_section(page, "measured", _wrapped("\n\n".join(texts)))
    paths = {folder / f"{name}.svg": svg for name, svg in figures.items()}
    for path, svg in paths.items():
        replace_text(path, f"{svg}\n")
    return [page, *paths]


def _wrapped(text: str) -> list[str]:
    """Returns the lines of a text, of which those of prose have at most 100 characters."""
    wrap = partial(textwrap.wrap, width=100, break_long_words=False, break_on_hyphens=False)
    lines = text.splitlines()
    return [
        part
        for line in lines
        for part in ([line] if line.startswith(("|", "!", "#")) else wrap(line) or [""])
    ]


def _calls(rows: Iterable[Row]) -> str:
    """Returns a block with the commands that measured the rows, in lines of 100 characters."""
    texts = []
    for command in dict.fromkeys(row["command"] for row in rows):
        words = f"{command} --out=runs/comparison"
        lines = textwrap.wrap(words, 94, break_long_words=False, break_on_hyphens=False)
        texts.append(" \\\n    ".join(lines))
    block = "\n".join(texts)
    return f"{_CALLS}\n\n<!-- not run: measures for minutes -->\n```\n{block}\n```"


def _versions(rows: Iterable[Row]) -> list[str]:
    """Returns the versions and commits that the rows were measured with."""
    found = [
        f"JAX {row['versions']['jax']}, commit {(row['commit'] or 'unknown')[:7]}, {row['date']}"
        for row in rows
    ]
    return [" and ".join(dict.fromkeys(found))] if found else []


def _figure_name(setup: Setup, measured: Measured) -> str:
    words = f"{setup} {measured.batch}"
    if measured.reference != REFERENCE:
        words += f" beside {measured.reference}"
    return f"{FILE}-{re.sub('[^a-z0-9]+', '-', words.lower()).strip('-')}"


def _picture(name: str, caption: str) -> str:
    caption += ". Stars: 200 epochs with AutoAugment, label smoothing and mixup (Table 5)"
    caption = f"Published top-1 on ImageNet against speed. {caption}."
    return f"![{name}]({name}.svg)\n\n*{caption}*"


def _speeds(measured: Measured) -> dict[str, float]:
    """Returns the speeds, divided by the reference's, of the nets whose accuracy is known."""
    speeds = {name: measured.speed(measured.forward, name) for name in measured.forward}
    return {name: speed for name, speed in speeds.items() if speed and name in PUBLISHED}


def _scatter(figure: str, speeds: dict[str, float], than: str) -> str:
    """Draws published top-1 against speed, with the families in colors."""
    points = []
    for name, speed in speeds.items():
        full, top1, source, *_ = PUBLISHED[name]
        kind = _kind(PUBLISHED[name].family)
        text = f"{full.removeprefix('RepVGG-')}{'*' * (source == TABLE_5)}"
        points.append(Point(text, speed, top1, 0.0, kind, labelled=True))
    shown = dict.fromkeys(PUBLISHED[name].family for name in speeds)
    legend = [(_kind(family), family) for family in shown]
    return draw_scatter(figure, points, f"images/s / {than}", legend)


def _kind(family: str) -> int:
    """Returns the index of a family's color and marker, of which there are twelve."""
    return _FAMILIES.index(family) % 12
