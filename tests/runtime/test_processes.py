"""Settings and connection of processes, without starting any."""

import os
from types import SimpleNamespace

import jax
import pytest

import repvgg_jax as rj
from repvgg_jax.runtime.processes import HEARTBEAT_SECONDS, join_processes, make_deterministic


def test_alone_without_a_cluster_and_wrong_arguments(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    join_processes()
    assert jax.process_count() == 1
    with pytest.raises(rj.UsageError, match="--num_processes, --process_index missing"):
        join_processes("localhost:1")
    with pytest.raises(rj.UsageError, match="--process_index=2: must be from 0 to"):
        join_processes("localhost:1", 2, 2)
    assert HEARTBEAT_SECONDS < 60


def test_deterministic_flags_are_added_once(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    make_deterministic()
    make_deterministic()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[0] == "--xla_force_host_platform_device_count=4"
    assert flags.count("--xla_gpu_deterministic_ops=true") == 1


def test_it_is_too_late_for_deterministic_kernels_once_the_gpus_have_started(monkeypatch, caplog):
    jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu")])
    monkeypatch.setenv("XLA_FLAGS", "")
    make_deterministic()
    assert os.environ["XLA_FLAGS"] == ""
    assert "train.deterministic has no effect" in caplog.text
