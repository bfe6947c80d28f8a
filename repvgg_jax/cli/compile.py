"""`--mode=compile`: estimates the cost of a training step on devices that need not be present."""

import dataclasses
import time
from pathlib import Path

from ml_collections import ConfigDict

from repvgg_jax.bench import aot
from repvgg_jax.config.build import check_config
from repvgg_jax.config.describe import model_name
from repvgg_jax.config.fields import to_json
from repvgg_jax.config.resolve import resolve
from repvgg_jax.config.workdir import (
    check_workdir,
    check_writable,
    lock_run,
    make_workdir,
    named_write_errors,
)
from repvgg_jax.runtime.files import write_json
from repvgg_jax.runtime.lock import check_unlocked
from repvgg_jax.runtime.processes import inform_once


def run_compile(config: ConfigDict, topology: str, workdir: Path | None) -> None:
    """Compiles a config's training step for a topology and prints its memory, FLOPs and traffic.

    Raises:
      UsageError: if the config cannot run on these devices.
      HeldError: if another process trains in the workdir.
      RunError: if the step does not fit in their memory.
    """
    if workdir is not None:
        check_unlocked(workdir)
    aot.prepare_compiler(topology)
    devices = aot.topology_devices(topology)
    config = resolve(config, workdir, devices)
    if workdir is not None:
        check_config(config)
        check_workdir(config, workdir)
        check_writable(workdir)
    inform_once(f"compiling a training step of {model_name(config)} for {topology} ...")
    started = time.monotonic()
    cost = aot.step_cost(aot.compile_step(config, devices))
    seconds = time.monotonic() - started
    images = config.train.batch_size
    title = (
        f"{model_name(config)} on {len(devices)} x {devices[0].device_kind} ({topology}), "
        f"{images:,} images per step, {images // len(devices):,} per device"
    )
    print(aot.format_cost(cost, title, aot.memory_bytes(devices[0])))
    print(f"compiled in {seconds:.0f} s")
    if workdir is None:
        return
    report = {
        "model": model_name(config),
        "topology": topology,
        "devices": len(devices),
        "batch_size": images,
        "compile_seconds": seconds,
        "memory": cost.memory,
        **dataclasses.asdict(cost),
    }
    with lock_run(workdir), named_write_errors(workdir):
        make_workdir(to_json(config), workdir)
        write_json(workdir / "compile.json", report)
