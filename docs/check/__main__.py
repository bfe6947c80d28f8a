"""Checks README.md, CONTRIBUTING.md and the pages in docs/: their commands, snippets and links.

  python -m docs.check                  run every command and Python snippet in a scratch folder
  python -m docs.check --static         only parse them: a second or two, part of the fast tests
  python -m docs.check README.md ...    the same for some pages

A fenced block without a language holds shell commands, one with `python` a snippet; `text` is
output. All run in one copy of the repository, README.md first, so `runs/quickstart` exists for the
other pages; the snippets of a page share one namespace. An HTML comment right before a block
changes how it is run:

  <!-- not run: reason -->      only parse the block, and print the reason
  <!-- run with: --steps=4 -->  append these arguments to each command
  <!-- first: code -->          execute this Python code before the snippet
"""

import argparse
import sys
import tempfile
from pathlib import Path

from docs.check.execution import copy_repository, run
from docs.check.pages import ROOT, pages
from docs.check.static import static_problems


def main() -> int:
    """Checks the pages, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--static", action="store_true", help="parse only")
    parser.add_argument("pages", nargs="*", type=Path, help="all by default")
    options = parser.parse_args()
    chosen = [page.resolve() for page in options.pages] or pages()
    sys.path.insert(0, str(ROOT))
    if problems := [problem for page in chosen for problem in static_problems(page)]:
        print("\n".join(problems))
        return 1
    if options.static:
        return 0
    with tempfile.TemporaryDirectory(prefix="repvgg_jax_docs_") as parent:
        folder = Path(parent) / "repvgg_jax"
        copy_repository(folder)
        failures = sum(run(page, folder) for page in chosen)
    print(f"{failures} failed" if failures else "all commands and snippets ran")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
