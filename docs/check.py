"""Checks README.md, CONTRIBUTING.md and the pages in docs/: their commands, snippets and links.

  python -m docs.check                  run every command and Python snippet in a scratch folder
  python -m docs.check --static         only parse them: a second or two, part of the fast tests
  python -m docs.check README.md ...    the same for some pages

A fenced block without a language holds shell commands, one with `python` a snippet; `text` is
output. All run in one copy of the repository, README.md first, so `runs/quickstart` exists for the
other pages; the snippets of a page share their names. An HTML comment right before a block changes
that, visibly to whoever reads the source:

  <!-- not run: reason -->      only parse the block, and print the reason
  <!-- run with: --steps=4 -->  append these arguments to each command
  <!-- first: code -->          execute this Python code before the snippet
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TIMEOUT = 900  # seconds of one block
ANNOTATION = re.compile(r"<!-- (not run|run with|first): (.*) -->")
PATH = re.compile(
    r"(?<![\w/.$~-])(?:repvgg_jax|experiments|configs|tests|docs)/[\w./]*\w|main\.py|Makefile"
)
MODULE = re.compile(r"(?:repvgg_jax|experiments|configs)(?:\.\w+)+")
FIELD = re.compile(r"((?:model|data|mesh|train|optim|bench|fuse)\.(?!jsonl)[a-z_0-9]+)(?:=.*)?")
# Files that the guides tell the reader to write.
TO_BE_WRITTEN = {"repvgg_jax/blocks/mean.py", "repvgg_jax/nets/alternating.py"}
# Dotted names of config fields that are also the names of packages.
PACKAGES = {path.name for path in (ROOT / "repvgg_jax").iterdir() if path.is_dir()}


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
        """The place as `page:line`."""
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


def static_problems(page: Path) -> list[str]:
    """Returns what is wrong on a page, without running anything."""
    problems = []
    for block in blocks(page):
        found = snippet_problems(block) if block.language else shell_problems(block)
        problems += [f"{block.where}: {problem}" for problem in found]
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = [*link_problems(page, prose), *name_problems(prose)]
    return problems + [f"{os.path.relpath(page, ROOT)}: {problem}" for problem in found]


def snippet_problems(block: Block) -> Iterator[str]:
    """Yields syntax errors, and imports and attributes of this package that do not exist."""
    try:
        tree = ast.parse(block.text)
    except SyntaxError as error:
        yield f"line {error.lineno} of the snippet: {error.msg}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("repvgg"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rj":
            names = [f"repvgg_jax.{node.attr}"]
        else:
            continue
        yield from (f"{name} does not exist" for name in names if not exists(name))


def shell_problems(block: Block) -> Iterator[str]:
    """Yields commands that name a mode, flag, field, module, target or extra that isn't there."""
    for command in commands(block):
        try:
            words = shlex.split(command)
        except ValueError as error:
            yield f"{command}: {error}"
            continue
        words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        python = next((i for i, word in enumerate(words) if word.endswith("python")), None)
        if words[0] == "make":
            yield from make_problems(words[1:])
        elif any(word.endswith("pip") for word in words):
            extras = re.findall(r"\.\[([\w,]+)\]", command)
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            for extra in ",".join(extras).split(",") if extras else []:
                if extra not in known["optional-dependencies"]:
                    yield f"{command}: no extra {extra}"
        elif python is not None and words[python + 1] == "-m":
            yield from module_problems(words[python + 2], words[python + 3 :])
        elif python is not None and words[python + 1] == "main.py":
            yield from main_problems(words[python + 2 :])


def make_problems(words: list[str]) -> Iterator[str]:
    """Yields targets that the Makefile does not have."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        if "=" not in word and word not in targets:
            yield f"make {word}: the Makefile has no such target"


def module_problems(module: str, arguments: list[str]) -> Iterator[str]:
    """Yields flags that a module's `--help` does not list."""
    if importlib.util.find_spec(module) is None:
        yield f"python -m {module}: no such module"
    elif module.startswith("experiments"):
        known = known_flags(module)
        for flag in flags(arguments):
            name = flag.split("=")[0]
            if not (name == "--help" or name.startswith("--config.") or name in known):
                yield f"python -m {module}: no flag {name}"
            elif name.startswith("--config."):
                yield from field_problems(name.removeprefix("--config."))


@cache
def known_flags(module: str) -> str:
    """Returns the flags of a module: what `--help` prints, or absl's definitions."""
    source = Path(importlib.util.find_spec(module).origin).read_text()
    if defined := re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", source):
        return " ".join(f"--{name}" for name in defined)
    text, argv = io.StringIO(), sys.argv
    sys.argv = [module, "--help"]
    try:
        with (
            contextlib.redirect_stdout(text),
            contextlib.suppress(SystemExit),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # the module was imported before
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    finally:
        sys.argv = argv
    return text.getvalue()


def main_problems(arguments: list[str]) -> Iterator[str]:
    """Yields what `main.py` rejects in its command line."""
    import main
    from repvgg_jax.cli.arguments import mode_arguments, parse
    from repvgg_jax.config.fields import check_values
    from repvgg_jax.errors import UsageError

    if any("<" in argument for argument in arguments):
        return  # a synopsis
    argv = ["main.py", *(re.sub(r"\$\w+", "0", argument) for argument in arguments)]
    if "--help" in argv:
        return
    try:
        with contextlib.chdir(ROOT):
            values = main.define_flags(argv)
            parse(values, argv)
            mode_arguments(values.mode, values)
        if values.config is not None:
            check_values(values.config)
    except UsageError as error:
        yield f"main.py {' '.join(arguments)}: {error}"


def flags(arguments: list[str]) -> Iterator[str]:
    """Yields `--flag` or `--flag=value`, also for values that stand in a word of their own."""
    for index, word in enumerate(arguments):
        if word.startswith("--"):
            value = arguments[index + 1] if index + 1 < len(arguments) else "--"
            yield word if "=" in word or value.startswith("--") else f"{word}={value}"


def field_problems(field: str) -> Iterator[str]:
    """Yields a config field that configs/default.py does not have."""
    from configs import default

    node = default.get_config()
    for part in field.split("."):
        if part.startswith("<") or not hasattr(node, "keys"):
            return
        if part not in node:
            yield f"configs/default.py has no field {field}"
            return
        node = node[part]


def link_problems(page: Path, prose: str) -> Iterator[str]:
    """Yields relative links whose file or heading does not exist."""
    targets = re.findall(r"\]\(([^)]+)\)|src(?:set)?=\"([^\"]+)\"", prose)
    for target in (first or second for first, second in targets):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"link to {target}: no such file"
        elif anchor and anchor not in headings(file):
            yield f"link to {target}: no such heading"


def headings(page: Path) -> set[str]:
    """Returns the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def name_problems(prose: str) -> Iterator[str]:
    """Yields paths, modules and config fields in code spans that do not exist."""
    for span in re.findall(r"`([^`\n]+)`", prose):
        for path in PATH.findall(span):
            if not (path in TO_BE_WRITTEN or "..." in span or (ROOT / path).exists()):
                yield f"`{span}`: {path} does not exist"
        if MODULE.fullmatch(span) and not exists(span):
            yield f"`{span}` does not exist"
        field = FIELD.fullmatch(span)
        if field and not (span.split(".")[0] in PACKAGES and exists(f"repvgg_jax.{span}")):
            yield from field_problems(field[1])


def exists(name: str) -> bool:
    """Returns True for the dotted name of a module, or of an attribute of one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            node = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(node, part):
                return False
            node = getattr(node, part)
        return True
    return False


def run(page: Path, folder: Path) -> int:
    """Runs the blocks of a page in `folder`, and returns how many failed."""
    failures, names = 0, ""
    for block in blocks(page):
        if block.annotation == "not run":
            print(f"{block.where}: not run: {block.argument}", flush=True)
            continue
        if block.language:
            first = block.argument if block.annotation == "first" else ""
            names += f"\n{first}\n{block.text}\n"
            (folder / "snippet.py").write_text(names)
            script = ["python snippet.py"]
        else:
            more = block.argument if block.annotation == "run with" else ""
            script = [f"{command} {more}".strip() for command in commands(block)]
        for command in script:
            failures += not succeeds(command, block, folder)
    return failures


def succeeds(command: str, block: Block, folder: Path) -> bool:
    """Runs a command in the scratch folder, prints how it went, and returns True on success."""
    began = time.monotonic()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, output = f"none after {TIMEOUT} s", str(error.stdout or "")
    seconds = time.monotonic() - began
    state = "ok" if code == 0 else f"FAILED, exit code {code}"
    print(f"{block.where}: {command}: {state} ({seconds:.0f} s)", flush=True)
    if code != 0:
        print("\n".join(f"    {line}" for line in output.splitlines()[-15:]), flush=True)
    return code == 0


def copy_repository(folder: Path) -> None:
    """Copies the repository to `folder`, which shares the environment of this one."""
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignored)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])


def main() -> int:
    """Checks the pages, and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
