"""Updates the measured sections of pages in docs/results, whose text is written by hand."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax

from repvgg_jax.runtime.files import replace_text

DOCS = Path(__file__).parents[2] / "docs/results"


def write_section(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replaces the lines between `<!-- name -->` and `<!-- end -->`; appends them if missing."""
    text = path.read_text() if path.exists() else ""
    start, end = f"<!-- {name} -->\n", "<!-- end -->\n"
    if start not in text:
        text += start + end
    before, _, rest = text.partition(start)
    after = rest.partition(end)[2]
    replace_text(path, "".join([before, start, *(f"{line}\n" for line in lines), end, after]))


def device_name() -> str:
    """Returns the devices of this process and the number of the host's cores."""
    kind = jax.devices()[0].device_kind
    return f"{kind} x{jax.device_count()} ({os.cpu_count()} host cores)"
