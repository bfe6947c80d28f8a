"""Four CPU devices for every test, and each program compiled once: set before JAX starts."""

import importlib.util
import os
import signal
import tempfile

import pytest

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests, and the commands that they start, train the same small nets.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="repvgg_jax_tests_"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, which timm wants too; also without its compiled half."""
    for name in ("torch", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: the other side is missing")
    import torch

    try:
        library = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            library.define(op + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        library = None  # the compiled half is there
    yield importlib.import_module("torchvision")
    del library


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A run of `tiny_config()`: its last state and its folder."""
    from repvgg_jax.training import train
    from tests.support.runs import tiny_config

    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    return train.train(tiny_config(), workdir).state, workdir


@pytest.fixture
def interruptible():
    """Also where the tests themselves run in the background, with SIGINT ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)
