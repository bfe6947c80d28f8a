"""Rules of style and language that a program can check.

    python -m tests.support.style

prints every place in the code that breaks one, as `file:line: what is wrong`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FRAGMENTS = re.compile(r"(What|Of|Whether|How|Where|That)\b")
MAX_PARAMETERS = 8  # of a function in repvgg_jax/training
# These `__init__.py` hold code: public APIs, the architectures by name, a check of packages.
WITH_CODE = {"repvgg_jax/__init__.py", "repvgg_jax/export/__init__.py"}
WITH_CODE |= {"repvgg_jax/nets/__init__.py", "experiments/__init__.py"}
MACHINE_PATH = re.compile(r"(?<![\w.])/work\b")
# Unusual words, and the usual ones.
BETTER = {
    r"anew": "again",
    r"mend(s|ed|ing)?": "fix",
    r"is none of (ours|theirs)|is no run of ours": "is not a repvgg_jax run",
    r"(?<!there )(is|are|was) no (?!longer|more|less|such|other|better|worse)\w+": "is not a ...",
    r"nor any other": "and no other",
    r"by turns": "interleaved",
    r"go(es)? on(?! with)": "resumes",
    r"rivals?": "baseline",
    r"fenced?s?": "optimization barrier",
    r"proofs?|proven?s?|proving": "verification",
    r"rooms": "files",
    r"mistaken?s?": "error",
}
BANNED = re.compile("|".join(rf"(?P<w{i}>\b(?:{words})\b)" for i, words in enumerate(BETTER)), re.I)


def documented(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields the line and the text of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def broken_docstrings(path: Path) -> Iterator[str]:
    for line, text in documented(ast.parse(path.read_text())):
        if word := FRAGMENTS.match(text):
            yield f"{path}:{line}: a docstring starts with {word[0]!r}; say what it returns or does"


def long_signatures(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            given = node.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len(set(names) - {"self", "cls"})
            if count > MAX_PARAMETERS:
                yield f"{path}:{node.lineno}: {node.name} has {count} parameters"


def code_in_init(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield f"{path}:{node.lineno}: only a docstring belongs here"


def machine_paths(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if MACHINE_PATH.search(line):
            yield f"{path}:{number}: a path of one machine: {line.strip()}"


def banned_words(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for found in BANNED.finditer(line):
            better = list(BETTER.values())[int(found.lastgroup[1:])]
            yield f"{path}:{number}: {found[0]!r}: rather {better!r}"


def code(*folders: str) -> list[Path]:
    """Returns the Python files under the folders (or the files) named, relative to the root."""
    paths = [ROOT / name for name in folders]
    files = [[path] if path.is_file() else sorted(path.rglob("*.py")) for path in paths]
    return [path.relative_to(ROOT) for group in files for path in group]


PRODUCT = ("main.py", "configs", "repvgg_jax", "experiments")
# The rules, and the files that they apply to.
RULES = {
    broken_docstrings: code(*PRODUCT, "tests/support"),
    long_signatures: code("repvgg_jax/training"),
    code_in_init: [
        path
        for path in code("repvgg_jax", "experiments")
        if path.name == "__init__.py" and path.as_posix() not in WITH_CODE
    ],
    machine_paths: code(*PRODUCT),
    banned_words: code(*PRODUCT),
}


def findings(rule) -> list[str]:
    """Returns every place that breaks a rule."""
    return [found for path in RULES[rule] for found in rule(path)]


if __name__ == "__main__":
    print(*(found for rule in RULES for found in findings(rule)), sep="\n")
