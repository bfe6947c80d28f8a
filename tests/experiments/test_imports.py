"""Tests that imports in `experiments` are one-way and `repvgg_jax` imports none of it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A package imports only from itself and from those before it; no package imports studies.
ORDER = ["reference", "sweeps", "benchmarks", "report", "studies"]
FILES = [*(ROOT / "experiments").rglob("*.py"), *(ROOT / "repvgg_jax").rglob("*.py")]


def imported(path):
    """Returns the modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_upward_import(path):
    folder, package, *_ = path.relative_to(ROOT).parts
    allowed = ORDER[: ORDER.index(package) + 1] if package in ORDER else ORDER
    for parts in (name.split(".") for name in imported(path)):
        assert parts[0] != "tests", f"{path} imports tests"
        if parts[0] == "experiments" and len(parts) > 1:
            assert folder == "experiments", f"{path} imports {parts}"
            assert parts[1] in allowed, f"{path} imports {parts}"


def test_no_module_defines_flags_of_the_process():
    """They could be defined only once, and a notebook may import or run modules after main.py."""
    assert not [path for path in FILES if {"absl.app", "absl.flags.FLAGS"} & set(imported(path))]
    experiments = [path for path in FILES if "experiments" in path.parts]
    assert not [path for path in experiments if "absl.flags" in set(imported(path))]


def test_no_cycle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    graph = {
        name.removesuffix(".__init__"): set(imported(path))
        for name, path in modules.items()
        if name.startswith("experiments.")
    }
    graph = {name: (others & graph.keys()) - {name} for name, others in graph.items()}
    while leaves := {name for name, others in graph.items() if not others}:
        graph = {name: others - leaves for name, others in graph.items() if name not in leaves}
    assert not graph
