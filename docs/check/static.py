"""Finds flags, fields, modules, files and links that pages name but that do not exist."""

import ast
import contextlib
import importlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from docs.check.pages import ROOT, Block, blocks, commands

PATH = re.compile(
    r"(?<![\w/.$~-])(?:repvgg_jax|experiments|configs|tests|docs)/[\w./]*\w|main\.py|Makefile"
)
MODULE = re.compile(r"(?:repvgg_jax|experiments|configs)(?:\.\w+)+")
FILE_ENDINGS = "jsonl|onnx|stablehlo|pth|py|safetensors|tflite"  # as of bench.jsonl, model.onnx
FIELD = re.compile(
    rf"((?:model|data|mesh|train|optim|bench|fuse)\.(?!(?:{FILE_ENDINGS})\b)[a-z_0-9]+)(?:=.*)?"
)
# Files that the guides tell the reader to write.
TO_BE_WRITTEN = {"repvgg_jax/blocks/mean.py", "repvgg_jax/nets/alternating.py"}
# Dotted names of config fields that are also the names of packages.
PACKAGES = {path.name for path in (ROOT / "repvgg_jax").iterdir() if path.is_dir()}


def static_problems(page: Path) -> list[str]:
    """Returns the problems of a page that can be found without running it."""
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
    """Yields nonexistent modes, flags, fields, modules, targets and extras in commands."""
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
    """Returns the flags of a module, as `--help` prints them."""
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
    """Yields the error that `main.py` raises for a command line."""
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
    """Yields `--flag` or `--flag=value`, also for values given as a separate word."""
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
