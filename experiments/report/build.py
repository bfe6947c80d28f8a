"""Builds the report on the sweeps' results: `python -m experiments.report`, or `make report`.

Reads all rows, `experiments/results/*.jsonl`, and writes `RESULTS.md`, its figures, and
`report.html` beside them. `report.html` holds everything and opens without a network. The same rows
in any order give the same bytes. A file `experiments/results/SWEEP.md` holds remarks on that sweep:
paragraphs of text that both documents include.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.throughput import with_throughput
from experiments.report.costs import common_scatter, measuring, sweep_scatter
from experiments.report.figures import (
    cut_off,
    draw_curves,
    draw_differences,
    draw_fusion_errors,
    draw_scatter,
)
from experiments.report.numbers import Group, Row, compare_order, fields, group_rows, known_values
from experiments.report.page import Block, Figure, Heading, Paragraph, Table, to_html, to_markdown
from experiments.report.tables import (
    NONE,
    accuracy_table,
    clear,
    cost_table,
    count,
    describe,
    done,
    order_blocks,
    other_table,
    own_papers_table,
    signed,
)
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.flags import Parser
from experiments.sweeps.rows import RESULTS, read_sweeps
from repvgg_jax.errors import RunError, UsageError

# The figures that a report may have.
_OURS = re.compile(rf"({'|'.join(SWEEPS)}|all)-.+-(differences|curves|scatter|fusion)\.svg")
TITLE = "Ablation sweeps: results"
_RUN = "python -m experiments.run {} --launcher=local --config.data.data_dir=..."
_READING = (
    "Top-1 is of the whole test set, in percent, as mean ± sample standard deviation over seeds. "
    "Differences are paired: each seed's run less the baseline's of the same seed, of the train "
    "form, which every run has. Intervals are 95% intervals of the mean by Student's t, each for "
    "itself: of twenty differences that are nothing, one is expected to look like something. A "
    "difference is called larger than noise where its interval leaves out zero. The paper's "
    "figures are of other data, nets and schedules, so the order is compared, not the level."
)


def report_blocks(rows: Sequence[Row], remarks: dict[str, str]) -> list[Block]:
    """The document: an overview, a section a sweep, and what is in none.

    Args:
      rows: of any sweeps, in any order.
      remarks: sweep -> paragraphs of text to stand in its section.
    """
    groups, others = group_rows(rows)
    ran = [name for name in SWEEPS if any(group.sweep == name for group in groups)]
    finished = max(known_values(rows, "finished"), default="")
    when = f", the last of them finished {finished}" if finished else ""
    runs = count(len({row["config_hash"] for row in rows}), "run")
    links = ", ".join(f"[{name}](#{name})" for name in ran)
    blocks: list[Block] = [
        Heading(1, TITLE, "top"),
        Paragraph(f"{runs}{when}. {'Sweeps: ' * bool(ran)}{links}"),
        Paragraph(_READING),
    ]
    blocks += [_overview(groups)] if groups else []
    for name in ran:
        blocks += _sweep_blocks(name, [g for g in groups if g.sweep == name], remarks.get(name))
    blocks += _all_sweeps(groups)
    if others:
        text = "Rows of sweeps or variants that this code doesn't have, or without a result."
        blocks += [Heading(2, "Other rows", "other"), Paragraph(text), other_table(others)]
    if absent := [name for name in SWEEPS if name not in ran]:
        text = (
            f"{', '.join(f'`{name}`' for name in absent)}. To run one: `{_RUN.format(absent[0])}`"
        )
        blocks += [Heading(2, "Not run yet", "not-run"), Paragraph(text)]
    return blocks


def _overview(groups: Sequence[Group]) -> Table:
    header = ["sweep", "what is varied", "protocol", "runs"]
    header.append("order against the paper's: tau (pairs beyond noise)")
    rows = []
    for group in groups:
        sweep = SWEEPS[group.sweep]
        compared = compare_order(group, sweep.published)
        shared = [f"`{name}={value}`" for name, value in group.shared.items()]
        protocol = " with ".join([f"`{group.protocol}`", *[", ".join(shared)][: len(shared)]])
        order = NONE if compared.tau is None else f"{signed(compared.tau)} ({clear(compared)})"
        rows.append([f"[{group.sweep}](#{group.name})", sweep.title, protocol, done(group), order])
    return Table(header, rows, 2)


def _sweep_blocks(name: str, groups: Sequence[Group], remarks: str | None) -> list[Block]:
    sweep = SWEEPS[name]
    blocks: list[Block] = [Heading(2, f"{sweep.title} (`{name}`)", name)]
    blocks += [Paragraph(sweep.note)] if sweep.note else []
    # Paragraphs, not Markdown: one line each.
    texts = (" ".join(text.split()) for text in (remarks or "").split("\n\n"))
    blocks += [Paragraph(text) for text in texts if text]
    for group in groups:
        shared = ", ".join(f"{field}={value}" for field, value in group.shared.items())
        title = f"{name}, {group.protocol}{' with ' * bool(shared)}{shared}"
        blocks += [Heading(3, title, group.name), *describe(group), accuracy_table(group)]
        blocks += order_blocks(group, compare_order(group, sweep.published))
        if sweep.own_papers:
            blocks += [
                Paragraph("Blocks as their own papers have them, on other nets:"),
                own_papers_table(group),
            ]
        blocks.append(cost_table(group))
        blocks += [Paragraph(words)] if (words := measuring(group)) else []
        blocks += _figures(group)
    return blocks


def _figures(group: Group) -> list[Figure]:
    about = ", ".join([group.sweep, group.protocol, *map("=".join, fields(group.shared))])
    figures = []
    published = "; diamonds: the paper's difference" * bool(SWEEPS[group.sweep].published)
    if group.runs[group.baseline] and len(group.rows) > len(group.runs[group.baseline]):
        caption = (
            f"{about}: difference to the baseline. Bar: mean; line: its 95% interval; circles: "
            f"seeds{published}.{' Arrows: it goes on beyond the frame.' * cut_off(group)}"
        )
        figures.append(Figure(f"{group.name}-differences", draw_differences(group), caption))
    caption = f"{about}: curves, mean over seeds ± 1 standard deviation; the loss is smoothed."
    figures.append(Figure(f"{group.name}-curves", draw_curves(group), caption))
    scatter = sweep_scatter(group)
    if len(scatter.points) > 1:
        caption = f"{about}: accuracy against {scatter.cost}, ± 1 standard deviation over seeds."
        svg = draw_scatter(f"{group.name}-scatter", scatter.points, scatter.cost)
        figures.append(Figure(f"{group.name}-scatter", svg, caption + scatter.remark))
    if any(row.get("fusion_error") for row in group.rows):
        caption = f"{about}: fusion error, a circle a run."
        figures.append(Figure(f"{group.name}-fusion", draw_fusion_errors(group), caption))
    return figures


def _all_sweeps(groups: Sequence[Group]) -> list[Block]:
    """A scatter a protocol over all its sweeps."""
    blocks: list[Block] = []
    for protocol in dict.fromkeys(group.protocol for group in groups):
        chosen = [g for g in groups if g.protocol == protocol and not g.shared]
        if len(chosen) < 2 or not (scatter := common_scatter(chosen)):
            continue
        caption = f"All sweeps, {protocol}: accuracy against {scatter.cost}. Named are the nets "
        caption += "that no other beats in both. Runs that several sweeps share are drawn once."
        legend = [(list(SWEEPS).index(group.sweep), group.sweep) for group in chosen]
        name = f"all-{protocol}-scatter"
        svg = draw_scatter(name, scatter.points, scatter.cost, legend)
        blocks.append(Figure(name, svg, caption + scatter.remark))
    return [Heading(2, "All sweeps together", "all"), *blocks] if blocks else []


def write_report(results: Path, out: Path) -> list[Path]:
    """Writes the documents of all rows under `results` into `out`, and says which.

    Raises:
      UsageError: where there are no rows, or a row of another version.
    """
    rows = read_sweeps(results)
    if not rows:
        command = _RUN.format("branches")
        raise UsageError(f"no rows in {results}/*.jsonl yet; this makes some: {command}")
    rows = with_throughput(rows, results)
    paths = {name: results / f"{name}.md" for name in SWEEPS}
    remarks = {name: path.read_text() for name, path in paths.items() if path.exists()}
    blocks = report_blocks(rows, remarks)
    figures = [block for block in blocks if isinstance(block, Figure)]
    texts = {out / "figures" / f"{figure.name}.svg": figure.svg for figure in figures}
    texts[out / "RESULTS.md"] = to_markdown(blocks, "figures")
    texts[out / "report.html"] = to_html(TITLE, blocks)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for path in (out / "figures").glob("*.svg"):
        if _OURS.fullmatch(path.name) and path not in texts:  # of rows that are gone
            path.unlink()
    for path, text in texts.items():
        path.write_text(text)
    return list(texts)[-2:]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the rows")
    parser.add_argument("--out", type=Path, help="folder of the report; --results by default")
    try:
        options = parser.parse_args(arguments)
        for path in write_report(options.results, options.out or options.results):
            print(path)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
