"""A document of headings, paragraphs, tables and figures, as Markdown and as one HTML file."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A section's title; `name` is what links point to."""

    level: int
    text: str
    name: str


@dataclass(frozen=True)
class Paragraph:
    """Text in which `code`, **emphasis** and [links](#name) inside the document are marked."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells as text. The first columns are words, the last `figures` ones are aligned right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: int


@dataclass(frozen=True)
class Figure:
    """A picture: `name` is its file's, `svg` its text, `caption` says what is drawn."""

    name: str
    svg: str
    caption: str


Block = Heading | Paragraph | Table | Figure


def to_markdown(blocks: Sequence[Block], folder: str) -> str:
    """The document, with the figures as files in the folder."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: str) -> str:
    match block:
        case Heading(level, text, name):
            return f'<a id="{name}"></a>\n\n{"#" * level} {text}'
        case Paragraph(text):
            return text
        case Figure(name, _, caption):
            return f"![{name}]({folder}/{name}.svg)\n\n*{caption}*"
        case Table(header, rows, figures):
            marks = ["---"] * (len(header) - figures) + ["--:"] * figures
            lines = [header, marks, *rows]
            return "\n".join(
                f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines
            )


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The document as a file that needs no other and no network."""
    body, open_grid = [], False
    for block in blocks:
        # Figures that follow each other share a grid: two in a row where there is room.
        if isinstance(block, Figure) != open_grid:
            body.append("</div>" if open_grid else '<div class="figures">')
            open_grid = not open_grid
        body.append(_html(block))
    body += ["</div>"] if open_grid else []
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(body))


def _html(block: Block) -> str:
    match block:
        case Heading(level, text, name):
            return f'<h{level} id="{name}">{_inline(text)}</h{level}>'
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Figure(name, svg, caption):
            picture = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(caption)}" ')
            return (
                f'<figure id="figure-{name}"><div class="scroll">{picture}</div>'
                f"<figcaption>{_inline(caption)}</figcaption></figure>"
            )
        case Table(header, rows, figures):
            first = len(header) - figures
            head = "".join(_cell("th", text, i >= first) for i, text in enumerate(header))
            lines = [
                "".join(_cell("td" if i else "th", t, i >= first) for i, t in enumerate(row))
                for row in rows
            ]
            body = "\n".join(f"<tr>{line}</tr>" for line in lines)
            return (
                f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
                f"<tbody>{body}</tbody></table></div>"
            )


def _cell(tag: str, text: str, figure: bool) -> str:
    return f"<{tag}{' class=f' if figure else ''}>{_inline(text)}</{tag}>"


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\[([^\]]+)\]\((#[\w.=-]+)\)", r'<a href="\2">\1</a>', text)


_STYLE = """
:root { color-scheme: light; --ink: #1d2226; --soft: #5b6570; --line: #d9dee3; --link: #00588a }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .75rem }
h2 { font-size: 1.4rem; line-height: 1.25; margin: 3rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--line) }
h3 { font-size: 1.08rem; margin: 1.9rem 0 .4rem }
p { max-width: 46rem; margin: .55rem 0; overflow-wrap: break-word }
a { color: var(--link) }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: #f2f4f6; padding: .05em .3em; border-radius: 3px }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch }
table { border-collapse: collapse; margin: .8rem 0 1.1rem; font-size: .875rem; line-height: 1.35;
  font-variant-numeric: tabular-nums lining-nums }
th, td { padding: .36rem .7rem; text-align: left; vertical-align: baseline }
thead th { font-weight: 600; color: var(--soft); vertical-align: bottom; min-width: 5.5rem;
  border-bottom: 1.5px solid var(--ink) }
tbody th { font-weight: 500; white-space: nowrap }
tr > :first-child { position: sticky; left: 0; background: #fff }
tbody tr > * { border-bottom: 1px solid var(--line) }
td.f { text-align: right; white-space: nowrap }
th.f { text-align: right }
.figures { display: grid; gap: 1.5rem 2rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 31rem), 1fr)) }
figure { margin: 0; min-width: 0 }
figure svg { display: block; width: 100%; min-width: 30rem; height: auto }
figure svg text { font-family: Arial, "Helvetica Neue", "Liberation Sans", "DejaVu Sans",
  sans-serif !important }
figcaption { font-size: .84rem; line-height: 1.45; color: var(--soft); margin-top: .3rem }
@media (max-width: 40rem) { main { padding: 1.25rem 1rem 3rem } h1 { font-size: 1.5rem }
  table { font-size: .82rem } th, td { padding: .34rem .5rem } }
@media print { figure, tr { break-inside: avoid } .scroll { overflow: visible } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
