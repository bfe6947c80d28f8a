"""Platforms that JAX cannot start."""

import os

import pytest

from tests.support.commands import python

# A platform that fails starts nothing, so one process can try them all.
SCRIPT = """
import sys
import jax
import main
from experiments.studies import segmentation
from experiments.sweeps.flags import run_command

workdir, *platforms = sys.argv[1:]
for platform in platforms:
    jax.config.update("jax_platforms", platform)
    sys.argv = ["segmentation"]
    codes = main.main(["main.py", "--config=configs/quickstart.py", "--workdir", workdir])
    assert codes == run_command(segmentation.main) == 2
"""
PLATFORMS = {
    "cuda": 'needs an NVIDIA GPU, its driver, and pip install "jax[cuda',
    "gpu": "needs to be cuda or rocm, and",
    "tpu": 'needs a TPU and pip install "jax[tpu]"',
    "tpu,cpu": "needs a TPU",
    "cdua": "JAX has no platform cdua, nor a plugin for it; choose from cpu, cuda, gpu, rocm, tpu",
}


@pytest.mark.skipif(
    any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/accel0", "/dev/vfio")),
    reason="this machine has an accelerator",
)
def test_absent_devices_are_one_line_with_what_to_install(tmp_path):
    lines = python("-c", SCRIPT, tmp_path / "run", *PLATFORMS).splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert lines == errors
    expected = [(name, text) for name, text in PLATFORMS.items() for _ in range(2)]
    for line, (name, text) in zip(errors, expected, strict=True):
        assert line.startswith(f"error: JAX_PLATFORMS={name}: ")
        assert text in line
    assert not (tmp_path / "run").exists()
