"""Errors of devices that JAX cannot start."""

from contextlib import nullcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.runtime import devices
from repvgg_jax.runtime.devices import (
    device_error,
    explaining_absent_devices,
    explaining_exhausted_memory,
)
from repvgg_jax.runtime.mesh import make_mesh

STARTING = "Unable to initialize backend"


@pytest.mark.parametrize(
    ("platforms", "cause", "kind", "says"),
    [
        ("cuda", "", UsageError, "(there is none); it needs an NVIDIA GPU"),
        ("cuda", f"{STARTING} 'cuda': no supported devices found", UsageError, "(no supported"),
        ("cuda", f"{STARTING} 'cuda': CUDA driver is insufficient", UsageError, "its driver"),
        ("tpu,cpu", f"{STARTING} 'tpu': Failed to open libtpu.so", UsageError, "jax[tpu]"),
        (
            "tpu",
            f"{STARTING} 'tpu': already in use. Not loading libtpu.so",
            RunError,
            "",
        ),
        ("tpu", f"{STARTING} 'tpu': UNAVAILABLE: TPU initialization failed", RunError, ""),
        ("npu", f"{STARTING} 'npu': not in the list of known backends", UsageError, "choose from"),
        ("npu", f"{STARTING} 'npu': DEADLINE_EXCEEDED", RunError, "its plugin for JAX"),
        ("", f"{STARTING} 'npu': UNKNOWN", RunError, "JAX_PLATFORMS=cpu runs on the CPU"),
    ],
)
def test_what_may_pass_is_no_usage_error(platforms, cause, kind, says):
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", platforms)
        error = device_error(RuntimeError(cause))
    finally:
        jax.config.update("jax_platforms", before)
    assert type(error) is kind
    assert says in str(error)
    assert str(error).startswith(f"JAX_PLATFORMS={platforms}: " if platforms else "JAX cannot")


@pytest.mark.parametrize(
    ("installed", "platform", "setting", "falls_back"),
    [
        ("cuda13", "cuda", {}, True),
        ("tpu", "cuda", {}, False),
        ("cuda13", "cpu", {}, False),
        ("cuda13", "cuda", {"jax_platforms": "cpu"}, False),
        ("cuda13", "cuda", {"jax_platform_name": "cpu"}, False),
    ],
)
def test_a_gpu_that_does_not_start_is_not_replaced_by_the_cpu(
    installed, platform, setting, falls_back, monkeypatch
):
    """The CPU is used if JAX is not installed for the GPU, or if somebody chose the CPU."""
    before = {name: jax.config.values[name] for name in ("jax_platforms", "jax_platform_name")}
    plugin = SimpleNamespace(value=f"jax_plugins.xla_{installed}")
    monkeypatch.setattr(devices, "entry_points", lambda group: [plugin])
    monkeypatch.setattr(devices, "devices_here", lambda environment: (platform, []))
    refused = pytest.raises(RunError, match="could not start this machine's GPU")
    try:
        for name in before:
            jax.config.update(name, setting.get(name, ""))
        with refused if falls_back else nullcontext():
            assert make_mesh().size == jax.device_count()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("a backend's error")], ids=repr)
def test_other_errors_pass_where_devices_can_be_started(error):
    with pytest.raises(type(error)) as caught, explaining_absent_devices():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("allocate", "says"),
    [
        (
            lambda: jax.jit(lambda: jnp.zeros(2**46, np.uint8))(),
            r"the device's .*\(RESOURCE_EXHAUS",
        ),
        (
            lambda: np.zeros(2**46, np.uint8),
            r"this machine's memory is exhausted \(Unable to alloc",
        ),
    ],
    ids=["device", "machine"],
)
def test_exhausted_memory_is_one_line_with_the_remedy(allocate, says):
    with (
        pytest.raises(RunError, match=rf"{says}.*\); use less$"),
        explaining_exhausted_memory("use less"),
    ):
        jax.block_until_ready(allocate())


def test_a_device_that_is_too_full_to_start_can_be_used_later():
    cause = RuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: no memory for the driver's context")
    assert type(device_error(cause)) is RunError
    assert "run fewer at a time" in str(device_error(cause))
