"""Settings of JAX for all tests, the tiers that tests belong to, and fixtures that packages share.

Tests without a marker make up the fast tier: each takes at most a second or two, and none starts a
process. `medium` tests take longer, `system` tests start processes, and `slow` tests take minutes.
"""

import atexit
import gc
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
from absl import logging as absl_logging

# Set before JAX starts, and inherited by the commands that tests run: four devices, and programs
# compiled with little effort, since they run for milliseconds. Each program is compiled once.
FLAGS = [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=4",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
    # Without MLIR for fusions, XLA takes half the time. Later versions removed the flag.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="repvgg_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# A sum of arrays of different ranks is an error, since a wrong axis would go unnoticed.
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

# submitit configures logging, which closes all handlers, and absl's handler closes its stream,
# here the file in which pytest captures the output, unless it is one of Python's own.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

# A run of the tests means the same on each machine; compiling makes some examples slow.
hypothesis.settings.register_profile("repeatable", max_examples=10, derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

SYSTEM = Path(__file__).parent / "system"


def pytest_collection_modifyitems(items):
    """Marks all of tests/system, and moves them to the front."""
    for item in items:
        if SYSTEM in item.path.parents:
            item.add_marker(pytest.mark.system)
    # The longest tests come first, since xdist moves the last ones of a process to another, where
    # their fixtures are made again.
    items.sort(key=lambda item: SYSTEM not in item.path.parents)


def pytest_collection_finish():
    """Exempts what was imported from garbage collection, which then takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def _processes_have_run():
    """Compiles oneDNN's calls and asks git for the commit, so that no test starts a process."""
    from repvgg_jax.ops import onednn
    from repvgg_jax.version import git_commit

    onednn.unavailable()
    git_commit()


@pytest.fixture(autouse=True)
def _no_process(request):
    """Only tests marked `system` may start processes."""
    if request.node.get_closest_marker("system"):
        yield
        return

    def refuse(self, arguments, *_, **__):
        pytest.fail(f"starts a process without the marker `system`: {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse)
        patch.setattr(subprocess.Popen, "__del__", lambda self: None)
        yield


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, which timm wants too; also without its compiled half."""
    for name in ("torch", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: the other side is missing")
    import torch

    from experiments.reference.torch_models import imported

    # Tests run in a process per core, and PyTorch's threads wait for each other in busy loops.
    torch.set_num_threads(1)
    return imported("torchvision")


@pytest.fixture(scope="session")
def timm(torchvision):
    return pytest.importorskip("timm", reason="timm is not installed")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A run of `tiny_config()`: its last state and its folder."""
    from tests.support.runs import tiny_config, train

    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    return train(tiny_config(), workdir).state, workdir


@pytest.fixture
def interruptible():
    """Also where the tests themselves run in the background, with SIGINT ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)
