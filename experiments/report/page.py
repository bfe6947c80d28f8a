"""A document of headings, paragraphs, tables and figures, as Markdown and as one HTML file."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A section's title; `name` is the target of links."""

    level: int
    text: str
    name: str


@dataclass(frozen=True)
class Paragraph:
    """Text with `code`, **emphasis** and [links](#name) within the document."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table of text, whose last `figures` columns are right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: int


@dataclass(frozen=True)
class Figure:
    """A picture: the name of its file, its SVG text and a caption."""

    name: str
    svg: str
    caption: str


Block = Heading | Paragraph | Table | Figure


def to_markdown(blocks: Sequence[Block], folder: str) -> str:
    """Returns the document as Markdown, with links to figures in the folder."""
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
    """Returns the document as self-contained HTML."""
    body = "\n".join(map(_html, blocks))
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=body)


def _html(block: Block) -> str:
    match block:
        case Heading(level, text, name):
            return f'<h{level} id="{name}">{_inline(text)}</h{level}>'
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Figure(name, svg, caption):
            picture = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(caption)}" ')
            caption = f"<figcaption>{_inline(caption)}</figcaption>"
            return f'<figure id="figure-{name}">{picture}{caption}</figure>'
        case Table(header, rows, figures):
            first = len(header) - figures
            lines = [_row("th", header, first), *(_row("td", row, first) for row in rows)]
            return f'<div class="scroll"><table>{chr(10).join(lines)}</table></div>'


def _row(tag: str, cells: Sequence[str], first_figure: int) -> str:
    """Returns a table row; cells from index `first_figure` on get the CSS class of figures."""
    marks = [' class="f"' if i >= first_figure else "" for i in range(len(cells))]
    cells = [f"<{tag}{mark}>{_inline(t)}</{tag}>" for mark, t in zip(marks, cells, strict=True)]
    return f"<tr>{''.join(cells)}</tr>"


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\[([^\]]+)\]\((#[\w.=-]+)\)", r'<a href="\2">\1</a>', text)


_STYLE = """
main { max-width: 72rem; margin: auto; padding: 1.5rem; font: 16px/1.5 Arial, sans-serif }
h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem }
p { max-width: 46rem; overflow-wrap: break-word }
code { background: #f2f4f6; padding: 0 .25em }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0; font-size: .875rem }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid #ddd }
td.f, th.f { text-align: right }
td { white-space: nowrap }
figure { display: inline-block; vertical-align: top; width: 31rem; max-width: 100%; margin: .5rem }
figure svg { width: 100%; height: auto }
figcaption { font-size: .84rem; color: #555 }
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
