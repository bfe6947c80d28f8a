"""`--mode=compile`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from ml_collections import ConfigDict

from repvgg_jax.bench import aot
from repvgg_jax.cli.common import model_name
from repvgg_jax.config.workdir import check_workdir, make_workdir
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.files import write_json


def run_compile(config: ConfigDict | None, topology: str | None, workdir: Path | None) -> None:
    """Compile a config's training step for devices that need not be there, and say its cost."""
    if config is None or topology is None:
        raise UsageError(
            "--mode=compile needs --config and --topology, such as --config configs/b1.py "
            "--topology=v5e:4x4"
        )
    if workdir is not None:
        check_workdir(config, workdir)
    aot.prepare_compiler(topology)
    devices, started = aot.topology_devices(topology), time.monotonic()
    cost = aot.step_cost(aot.compile_step(config, devices))
    seconds, images = time.monotonic() - started, config.train.batch_size
    title = (
        f"{model_name(config)} on {len(devices)} x {devices[0].device_kind} ({topology}), "
        f"{images:,} images a step, {images // len(devices):,} a device"
    )
    print(
        f"{aot.format_cost(cost, title, aot.memory_bytes(devices[0]))}\ncompiled in {seconds:.0f} s"
    )
    if workdir is not None:
        make_workdir(config, workdir)
        about = {"model": model_name(config), "topology": topology, "devices": len(devices)}
        about |= {"batch_size": images, "compile_seconds": seconds, "memory": cost.memory}
        write_json(workdir / "compile.json", about | dataclasses.asdict(cost))
