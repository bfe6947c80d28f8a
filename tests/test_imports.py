"""Imports flow one way, and the heavy or foreign ones stay out of the library's top level."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up; a module imports only from its own room or from those before it.
ROOMS = [
    {"errors"},
    {"statistics", "compilation"},
    {"onednn", "winograd"},
    {"passes"},
    {"convolution"},
    {"affine", "layers", "moments", "sharding"},
    {"blocks"},
    {"nets"},
    {"averages", "runtime"},
    {"fuse", "data", "optim", "repoptimizer", "bench", "records", "curves", "hlo", "timing"},
    {"torch_files", "torch_layout"},
    {"weights"},
    {"certificate", "finetune", "integrity"},
    {"monitor"},
    {"watch", "report", "mixing", "stopping", "feed"},
    {"config_fields"},
    {"config"},
    {"fused_weights", "evaluation"},
    {"checkpoint"},
    {"step"},
    {"loop"},
    {"train"},
    {"ahead"},
    {"data_rivals"},
    {"modes", "exchange", "data_bench", "model_bench"},
]
FOREIGN = {"torch", "onnx", "tensorflow", "matplotlib", "tensorflow_datasets", "sklearn", "grain"}
FOREIGN |= {"timm", "safetensors", "PIL", "simplejpeg", "cykooz_resizer", "cv2"}
MODULES = sorted((ROOT / "repvgg_jax").rglob("*.py"))


def room_of(path):
    name = path.relative_to(ROOT / "repvgg_jax").parts[0].removesuffix(".py")
    return next((index for index, names in enumerate(ROOMS) if name in names), None)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_upward_import(path):
    if path == ROOT / "repvgg_jax/__init__.py":
        return
    here = room_of(path)
    assert here is not None, f"say in ROOMS where {path.name} belongs"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "repvgg_jax":
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("repvgg_jax."):
            names = [node.module.split(".")[1]]
        else:
            continue
        for name in names:
            assert room_of(ROOT / "repvgg_jax" / f"{name}.py") <= here, f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_foreign_at_module_level(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        assert not FOREIGN & {name.split(".")[0] for name in names}


def test_importing_starts_no_backend_and_no_tensorflow():
    code = (
        "import repvgg_jax, sys; from jax._src import xla_bridge as bridge; "
        "assert not bridge._backends, 'a backend was started'; "
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
