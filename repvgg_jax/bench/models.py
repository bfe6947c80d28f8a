"""`--mode=bench`: the costs of a model in its train form, as a plain net, and fused."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from repvgg_jax.bench.counting import count_macs, count_parameters, count_winograd_multiplications
from repvgg_jax.bench.timing import Times, matmul_peak, ratio, time_interleaved
from repvgg_jax.config.build import build, make_net
from repvgg_jax.config.fields import check_values
from repvgg_jax.errors import UsageError
from repvgg_jax.fusion.fuse import fuse
from repvgg_jax.nets import init
from repvgg_jax.runtime.compilation import jit, temporaries_bytes
from repvgg_jax.runtime.mesh import shard_batch
from repvgg_jax.training.state import fresh_state
from repvgg_jax.training.step import jit_train_step

BENCH_FILE = "bench.jsonl"
ROUNDS = 5


@dataclass(frozen=True)
class BenchRow:
    """Costs of one form of a model at one batch size.

    Attributes:
      model: name of the model.
      device: kind and number of the devices: one in evaluation, all in training.
      dtype: compute type.
      image_size: side of the images in pixels.
      form: "train form", "plain" (one convolution and BatchNorm per layer), or "fused".
      task: "step" of training, or "forward" in evaluation mode.
      batch: images per batch.
      parameters: number of parameters.
      macs: multiply-adds for one image.
      winograd_multiplications: multiplications for one image with F(2x2, 3x3).
      temporaries: bytes that the program needs besides its arguments and results.
      compile_seconds: seconds of tracing and compilation.
      milliseconds: time of a batch, the median over interleaved rounds.
      images_per_second: throughput at that time.
      share_of_peak: fraction of the fastest matrix product's operations per second; a step counts
        as three passes.
      ratio: time divided by the plain net's (step) or the fused net's (forward).
    """

    model: str
    device: str
    dtype: str
    image_size: int
    form: str
    task: str
    batch: int
    parameters: int
    macs: int
    winograd_multiplications: int
    temporaries: int
    compile_seconds: float
    milliseconds: float
    images_per_second: float
    share_of_peak: float
    ratio: float


@dataclass
class _Program:
    """A compiled program of one form, and a function that runs it once."""

    form: str
    net: nn.Module
    variables: Any
    run: Callable[[], Any]
    temporaries: int
    compile_seconds: float


def run_bench(config: ConfigDict, workdir: Path) -> None:
    """Measures, prints a table, and appends rows to `<workdir>/bench.jsonl`.

    Raises:
      UsageError: if the config cannot run.
    """
    check_values(config)
    batches = config.bench.batch_sizes
    if not batches or not all(isinstance(batch, int) and batch > 0 for batch in batches):
        raise UsageError(f"bench.batch_sizes={batches} must be positive integers")
    peak = matmul_peak(make_net(config).dtype)
    print(f"fastest matrix product: {peak / 1e12:.3g} TFLOP/s in {config.model.dtype}")
    workdir.mkdir(parents=True, exist_ok=True)
    for task in ("forward", "step"):
        _print_header(task)
        for batch in sorted(batches):
            if task == "step" and batch % jax.device_count():
                print(f"skipped batch {batch}: not a multiple of {jax.device_count()} devices")
                continue
            rows = _measure(config, task, batch, peak)
            with (workdir / BENCH_FILE).open("a", encoding="utf-8") as file:
                for row in rows:
                    print(_line(row), flush=True)
                    file.write(json.dumps(asdict(row)) + "\n")
            slowest = max(row.milliseconds for row in rows) / 1000
            if slowest > config.bench.seconds:
                print(f"skipped larger batches: bench.seconds={config.bench.seconds}")
                break


def _measure(config: ConfigDict, task: str, batch: int, peak: float) -> list[BenchRow]:
    compile_forms = {"forward": _forwards, "step": _steps}[task]
    programs = compile_forms(config, batch)
    times = time_interleaved({p.form: p.run for p in programs}, ROUNDS)
    return [_bench_row(config, task, batch, peak, program, times, programs) for program in programs]


def _bench_row(
    config: ConfigDict,
    task: str,
    batch: int,
    peak: float,
    program: _Program,
    times: Times,
    programs: list[_Program],
) -> BenchRow:
    seconds = statistics.median(times[program.form])
    size = config.data.image_size
    macs = count_macs(program.net, program.variables, size)
    winograd = count_winograd_multiplications(program.net, program.variables, size)
    passes = 3 if task == "step" else 1
    devices = jax.device_count() if task == "step" else 1
    return BenchRow(
        model=config.model.name,
        device=f"{jax.devices()[0].device_kind} x{devices}",
        dtype=config.model.dtype,
        image_size=size,
        form=program.form,
        task=task,
        batch=batch,
        parameters=count_parameters(program.variables),
        macs=macs,
        winograd_multiplications=winograd,
        temporaries=program.temporaries,
        compile_seconds=program.compile_seconds,
        milliseconds=1e3 * seconds,
        images_per_second=batch / seconds,
        share_of_peak=2 * macs * passes * batch / seconds / (devices * peak),
        ratio=ratio(times, program.form, programs[-1].form),
    )


def _forwards(config: ConfigDict, batch: int) -> list[_Program]:
    """Compiles all forms in evaluation mode."""
    size = config.data.image_size
    nets = {name: make_net(form) for name, form in _forms(config).items()}
    forms = {name: (net, init(net, jax.random.key(0))) for name, net in nets.items()}
    forms["fused"] = fuse(*forms["train form"])
    images = jnp.zeros((batch, size, size, 3), nets["train form"].dtype)
    programs = []
    for form, (net, variables) in forms.items():
        forward = jit(partial(net.apply, train=False))
        compiled, seconds = _compile(forward, variables, images)
        run = partial(compiled, variables, images)
        programs.append(_Program(form, net, variables, run, temporaries_bytes(compiled), seconds))
    return programs


def _steps(given: ConfigDict, batch: int) -> list[_Program]:
    """Compiles training steps, with the optimizer, of the train form and the plain net."""
    programs, size = [], given.data.image_size
    for form, config in _forms(given).items():
        config.train.batch_size = batch
        experiment = build(config, open_data=False)
        state = fresh_state(experiment)
        images = jnp.zeros((batch, size, size, 3), jnp.uint8)
        rows = {"image": images, "label": jnp.zeros(batch, jnp.int32), "mask": jnp.ones(batch)}
        data, key = shard_batch(rows, experiment.mesh), jax.random.key(0)
        step = jit_train_step(state, experiment.mesh, experiment.step_options)
        compiled, seconds = _compile(step, state, data, key)
        variables = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.eval_variables
        )
        run = RepeatedStep(compiled, state, data, key)
        temporaries = temporaries_bytes(compiled)
        programs.append(_Program(form, experiment.net, variables, run, temporaries, seconds))
    return programs


def _forms(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the config, and the plain net's unless the net has no train-time blocks."""
    forms = {"train form": config.copy_and_resolve_references()}
    if not make_net(config).is_fused:
        forms["plain"] = config.copy_and_resolve_references()
        forms["plain"].model.update(block="plain", branches=None, branch_statistics=None)
    return forms


@dataclass
class RepeatedStep:
    """A function that takes the next training step at each call, since a step donates its state."""

    step: Callable[..., Any]
    state: Any
    data: Any
    key: jax.Array

    def __call__(self) -> Any:
        """Takes a step and returns its metrics."""
        self.state, metrics = self.step(self.state, self.data, self.key)
        return metrics


def _compile(function: Any, *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def _print_header(task: str) -> None:
    to = {"forward": "fused", "step": "plain"}[task]
    print(
        f"\n{task:<12} {'batch':>5} {'params M':>9} {'GMACs':>7} {'Wino':>7} {'temp MB':>8} "
        f"{'compile s':>9} "
        f"{'ms':>9} {'images/s':>9} {'of peak':>7} {'to ' + to:>9}"
    )


def _line(row: BenchRow) -> str:
    return (
        f"{row.form:<12} {row.batch:>5} {row.parameters / 1e6:>9.2f} {row.macs / 1e9:>7.2f} "
        f"{row.winograd_multiplications / 1e9:>7.2f} "
        f"{row.temporaries / 1e6:>8.0f} {row.compile_seconds:>9.1f} {row.milliseconds:>9.1f} "
        f"{row.images_per_second:>9.1f} {row.share_of_peak:>7.0%} {row.ratio:>9.2f}"
    )
