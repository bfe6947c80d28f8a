"""Builds the report on the sweeps' results: `python -m experiments.report`, or `make report`.

Reads all rows, `experiments/results/*.jsonl`, and writes `RESULTS.md`, its figures and the
self-contained `report.html` to that folder. Both documents include the remarks in the files
`SWEEP-PROTOCOL.md` and `all.md` of that folder. `make report ROWS=FOLDER` reports on other rows.

The output depends neither on the order of the rows nor on the machine. Since versions of matplotlib
place text differently, figures are drawn again only if the rows or the code of the report changed.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.benchmarks.throughput import with_throughput
from experiments.report.costs import common_scatter, sweep_scatter, throughput_note
from experiments.report.figures import (
    draw_curves,
    draw_differences,
    draw_fusion_errors,
    draw_scatter,
)
from experiments.report.numbers import Group, Row, compare_order, group_rows, present_values
from experiments.report.page import Block, Figure, Heading, Paragraph, Table, to_html, to_markdown
from experiments.report.tables import (
    NONE,
    accuracy_table,
    cost_table,
    order_blocks,
    other_table,
    own_papers_table,
    pairs_beyond_noise,
    progress,
    setup,
    signed,
    title,
)
from experiments.sweeps import ablations, networks
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.expand import count
from experiments.sweeps.flags import Parser, path_type, run_command, writing
from experiments.sweeps.rows import RESULTS, read_sweeps
from repvgg_jax.errors import UsageError

# Names of the figures that a report writes.
_OWN_FIGURES = re.compile(rf"({'|'.join(SWEEPS)}|all)-.+-(differences|curves|scatter|fusion)\.svg")
TITLE = "Ablation sweeps: results"
_RUN = "python -m experiments.run {} --launcher=local --config.data.data_dir=..."
_READING = (
    "Top-1 is measured on the whole test set, in percent, as mean ± sample standard deviation over "
    "seeds. Differences are paired, a run minus the baseline's run of the same seed, and taken in "
    "the train form, which every run has. Intervals are 95% intervals of the mean by Student's t, "
    "without correction for multiple comparisons: of twenty differences that are zero, one is "
    "expected to seem different. A difference is larger than noise if its interval excludes zero. "
    "The paper's figures are for other data, nets and schedules; compare the order, not the level."
)


# In the remarks on runs that shared a device, so that their step times say nothing.
SHARED = "<!-- shared device -->"


def report_blocks(rows: Sequence[Row], remarks: Mapping[str, str]) -> list[Block]:
    """Returns the document: an overview, a section for each sweep, and rows outside of sweeps.

    Args:
      rows: rows of any sweeps, in any order.
      remarks: paragraphs of text by name of a group (`SWEEP-PROTOCOL`), or "all".
    """
    groups, others = group_rows(rows)
    ran = [name for name in SWEEPS if any(group.sweep == name for group in groups)]
    finished = max(present_values(rows, "finished"), default="")
    when = f", the last finished {finished}" if finished else ""
    runs = count(len({row["config_hash"] for row in rows}), "run")
    links = ", ".join(f"[{name}](#{name})" for name in ran)
    blocks: list[Block] = [
        Heading(1, TITLE, "top"),
        Paragraph(f"{runs}{when}. Sweeps: {links or 'none'}."),
        Paragraph(_READING),
        *_remarks(remarks.get("all", "")),
    ]
    if groups:
        blocks.append(_overview(groups))
    for name in ran:
        blocks.append(Heading(2, f"{SWEEPS[name].title} (`{name}`)", name))
        if SWEEPS[name].note:
            blocks.append(Paragraph(SWEEPS[name].note))
        for group in groups:
            if group.sweep == name:
                blocks += _group_blocks(group, remarks.get(group.name, ""))
    blocks += _all_sweeps(groups)
    if others:
        text = "Rows without a result, or of sweeps or variants that this code does not have."
        blocks += [Heading(2, "Other rows", "other"), Paragraph(text), other_table(others)]
    # The command is for the protocols' own data, which a report on other data is not about.
    own = any(not group.shared for group in groups)
    if own and (absent := [name for name in SWEEPS if name not in ran]):
        names = ", ".join(f"`{name}`" for name in absent)
        text = f"{names}. To run one: `{_RUN.format(absent[0])}`"
        blocks += [Heading(2, "Not run yet", "not-run"), Paragraph(text)]
    return blocks


def _overview(groups: Sequence[Group]) -> Table:
    header = ["sweep", "what is varied", "protocol", "runs"]
    header.append("order against the paper's: tau (pairs beyond noise)")
    rows = []
    for group in groups:
        sweep = SWEEPS[group.sweep]
        order = compare_order(group, sweep.published)
        tau = NONE if order.tau is None else f"{signed(order.tau)} ({pairs_beyond_noise(order)})"
        link = f"[{group.sweep}](#{group.name})"
        rows.append([link, sweep.title, title(group), progress(group), tau])
    return Table(header, rows, 2)


def _remarks(text: str) -> list[Paragraph]:
    """Returns the paragraphs of a file of remarks, each on one line."""
    paragraphs = (" ".join(part.split()) for part in text.replace(SHARED, "").split("\n\n"))
    return [Paragraph(part) for part in paragraphs if part]


def _group_blocks(group: Group, remarks: str) -> list[Block]:
    """Returns the section of one sweep in one protocol."""
    sweep = SWEEPS[group.sweep]
    blocks: list[Block] = [Heading(3, f"{group.sweep}, {title(group)}", group.name)]
    blocks += [*_remarks(remarks), *setup(group), accuracy_table(group)]
    blocks += order_blocks(group, compare_order(group, sweep.published))
    if sweep.own_papers:
        text = "Blocks in their own papers, on other nets:"
        blocks += [Paragraph(text), own_papers_table(group)]
    blocks.append(cost_table(group, timed=SHARED not in remarks))
    if note := throughput_note(group):
        blocks.append(Paragraph(note))
    return blocks + _figures(group)


def _figures(group: Group) -> list[Figure]:
    about = f"{group.sweep}, {title(group, ', ')}"
    figures = []
    if group.runs[group.baseline] and len(group.rows) > len(group.runs[group.baseline]):
        caption = (
            f"{about}: difference to the baseline. Bar: mean, printed if it exceeds the frame; "
            "line: its 95% interval; circles: seeds"
        )
        caption += "; diamonds: paper." if SWEEPS[group.sweep].published else "."
        figures.append(Figure(f"{group.name}-differences", draw_differences(group), caption))
    caption = f"{about}: curves, mean over seeds ± 1 standard deviation; the loss is smoothed."
    figures.append(Figure(f"{group.name}-curves", draw_curves(group), caption))
    scatter = sweep_scatter(group)
    if scatter and len(scatter.points) > 1:
        caption = f"{about}: accuracy against {scatter.cost}, ± 1 standard deviation over seeds."
        svg = draw_scatter(f"{group.name}-scatter", scatter.points, scatter.cost)
        figures.append(Figure(f"{group.name}-scatter", svg, caption + scatter.remark))
    if any(row.get("fusion_error") for row in group.rows):
        caption = f"{about}: fusion error, one circle for each run."
        figures.append(Figure(f"{group.name}-fusion", draw_fusion_errors(group), caption))
    return figures


def _all_sweeps(groups: Sequence[Group]) -> list[Block]:
    """Returns a scatter plot of all sweeps for each protocol."""
    blocks: list[Block] = []
    for protocol in dict.fromkeys(group.protocol for group in groups):
        chosen = [g for g in groups if g.protocol == protocol and not g.shared]
        if len(chosen) < 2 or not (scatter := common_scatter(chosen)):
            continue
        caption = (
            f"All sweeps, `{protocol}`: accuracy against {scatter.cost}. Labels: nets that no "
            f"other equals in both. Runs shared by several sweeps are drawn once.{scatter.remark}"
        )
        legend = [(list(SWEEPS).index(group.sweep), group.sweep) for group in chosen]
        name = f"all-{protocol}-scatter"
        svg = draw_scatter(name, scatter.points, scatter.cost, legend)
        blocks.append(Figure(name, svg, caption))
    return [Heading(2, "All sweeps together", "all"), *blocks] if blocks else []


def write_report(results: Path, out: Path) -> list[Path]:
    """Writes the documents on all rows in `results` to `out`, and returns their paths."""
    rows = read_sweeps(results)
    if not rows:
        command = f"{_RUN.format('branches')} --results={results}"
        raise UsageError(f"no rows in {results}/*.jsonl; run a sweep first: {command}")
    remarks = {path.stem: path.read_text() for path in sorted(results.glob("*.md"))}
    rows = with_throughput(rows, results)
    blocks = report_blocks(rows, remarks)
    digest = digest_line(rows)
    page = out / "RESULTS.md"
    if page.exists() and page.read_text().endswith(digest):
        blocks = [_as_drawn(block, out / "figures") for block in blocks]
    figures = [block for block in blocks if isinstance(block, Figure)]
    texts = {out / "figures" / f"{figure.name}.svg": figure.svg for figure in figures}
    documents = {
        page: to_markdown(blocks, "figures") + digest,
        out / "report.html": to_html(TITLE, blocks),
    }
    with writing(out):
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for path in (out / "figures").glob("*.svg"):
            if _OWN_FIGURES.fullmatch(path.name) and path not in texts:
                path.unlink()
        for path, text in (texts | documents).items():
            path.write_text(text)
    return list(documents)


def digest_line(rows: Sequence[Row]) -> str:
    """Returns the last line of `RESULTS.md`: a hash of the rows and code that drew its figures."""
    digest = hashlib.sha256()
    for line in sorted(json.dumps(row, sort_keys=True) for row in rows):
        digest.update(line.encode())
    sweeps = (Path(module.__file__) for module in (ablations, networks))
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *sweeps):
        digest.update(path.read_bytes())
    return f"\n<!-- figures drawn from {digest.hexdigest()[:16]} -->\n"


def _as_drawn(block: Block, folder: Path) -> Block:
    """Returns the block; a figure with the content of its file, if that exists."""
    if isinstance(block, Figure) and (path := folder / f"{block.name}.svg").exists():
        return replace(block, svg=path.read_text())
    return block


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the report and returns the exit code, see `repvgg_jax.errors`."""

    def command() -> None:
        parser = Parser(__doc__)
        parser.add_argument(
            "--results", type=path_type, default=RESULTS, help="folder of rows, such as your own"
        )
        parser.add_argument(
            "--out", type=path_type, help="folder of the report; --results by default"
        )
        options = parser.parse_args(arguments)
        for path in write_report(options.results, options.out or options.results):
            print(path)

    return run_command(command)
