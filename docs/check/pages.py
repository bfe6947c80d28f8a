"""The pages of the documentation, and the commands and snippets on them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ANNOTATION = re.compile(r"<!-- (not run|run with|first): (.*) -->")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    annotation: str
    argument: str

    @property
    def where(self) -> str:
        """The location as `page:line`."""
        return f"{os.path.relpath(self.page, ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Returns the pages to check, README.md first."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """Yields the shell and Python blocks of a page."""
    annotation, argument, fence = "", "", None
    lines: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if fence is None and line.startswith("```"):
            fence, lines, start = line[3:].strip(), [], number
        elif fence is not None and line.startswith("```"):
            if fence in ("", "python"):
                yield Block(page, start, fence, "\n".join(lines), annotation, argument)
            fence, annotation, argument = None, "", ""
        elif fence is not None:
            lines.append(line)
        else:
            match = ANNOTATION.fullmatch(line.strip())
            annotation, argument = match.groups() if match else ("", "")


def commands(block: Block) -> list[str]:
    """Returns the commands of a shell block, continued lines joined and comments dropped."""
    joined = block.text.replace("\\\n", " ")
    parts = (re.sub(r"(^|\s+)#.*", "", line).split(" && ") for line in joined.splitlines())
    return [part.strip() for line in parts for part in line if part.strip()]
