"""Imports flow one way, and heavy or foreign packages stay out of the library's top level."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A package imports only from itself and from those before it.
ORDER = [
    "errors",
    "version",
    "runtime",
    "ops",
    "affine",
    "layers",
    "blocks",
    "nets",
    "fusion",
    "data",
    "interop",
    "export",
    "optim",
    "config",
    "checkpoint",
    "training",
    "bench",
    "serve",
    "cli",
]
FOREIGN = {"torch", "onnx", "tensorflow", "matplotlib", "tensorflow_datasets", "sklearn", "grain"}
FOREIGN |= {"onnxruntime", "timm", "safetensors", "PIL", "simplejpeg", "cykooz_resizer", "cv2"}
FOREIGN |= {"fastapi", "starlette", "uvicorn", "prometheus_client"}
PACKAGE = ROOT / "repvgg_jax"
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"
)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def imported(path):
    """Modules of the package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "repvgg_jax":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in NAMES else node.module


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_upward_import(path):
    package = module_name(path).split(".")[1]
    assert package in ORDER, f"add {package} to ORDER"
    for name in imported(path):
        other = name.split(".")[1] if "." in name else "cli"
        assert ORDER.index(other) <= ORDER.index(package), f"{path} imports {name}"


def test_no_cycle():
    graph = {module_name(path): set(imported(path)) for path in MODULES}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in graph.get(name, ()):
                if other != name:
                    visit(other)
            done.add(path.pop())

    for name in graph:
        visit(name)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nothing_foreign_at_module_level(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        assert not FOREIGN & {name.split(".")[0] for name in names}


@pytest.mark.system
def test_importing_starts_no_backend_and_no_tensorflow():
    code = (
        "import repvgg_jax, sys; from jax._src import xla_bridge as bridge; "
        "assert not bridge._backends, 'a backend was started'; "
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
