"""`--mode=bench`: measures a model in its train form, as a plain net, and fused."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from repvgg_jax.bench.counting import count_macs, count_parameters, count_winograd_multiplications
from repvgg_jax.bench.timing import matmul_peak, ratio, time_interleaved
from repvgg_jax.config.build import build, make_net
from repvgg_jax.config.fields import check_values
from repvgg_jax.config.resolve import resolve
from repvgg_jax.config.workdir import named_write_errors
from repvgg_jax.errors import UsageError
from repvgg_jax.fusion.fuse import fuse
from repvgg_jax.nets import Net, abstract, init
from repvgg_jax.runtime.compilation import jit, temporaries_bytes
from repvgg_jax.runtime.files import append_row
from repvgg_jax.runtime.mesh import shard_batch
from repvgg_jax.training.state import fresh_state
from repvgg_jax.training.step import jit_train_step

BENCH_FILE = "bench.jsonl"
ROUNDS = 5


@dataclass
class _Program:
    """A compiled program of one form, and a function that runs it once."""

    form: str  # "train form", "plain" (one convolution and BatchNorm per layer), or "fused"
    net: Net
    variables: Any
    run: Callable[[], Any]
    temporaries: int | None
    compile_seconds: float


def run_bench(config: ConfigDict, workdir: Path) -> None:
    """Measures a model, prints a table, and appends rows to `<workdir>/bench.jsonl`.

    Raises:
      UsageError: if the config cannot run.
    """
    config = resolve(config)
    check_values(config)
    batches = config.bench.batch_sizes
    if not batches or not all(isinstance(batch, int) and batch > 0 for batch in batches):
        raise UsageError(f"bench.batch_sizes={batches} must be positive integers")
    peak = matmul_peak(make_net(config).dtype)
    print(f"fastest matrix product: {peak / 1e12:.3g} TFLOP/s in {config.model.dtype}")
    with named_write_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    for task, last_form in (("forward", "fused"), ("step", "plain")):
        print(
            f"\n{task:<12} {'batch':>5} {'params M':>9} {'GMACs':>7} {'Wino':>7} {'temp MB':>8} "
            f"{'compile s':>9} {'ms':>9} {'images/s':>9} {'of peak':>7} {'to ' + last_form:>9}"
        )
        for batch in sorted(batches):
            if task == "step" and batch % jax.device_count():
                print(f"skipped batch {batch}: not a multiple of {jax.device_count()} devices")
                continue
            rows = _measure(config, task, batch, peak)
            for row in rows:
                print(_line(row), flush=True)
                append_row(workdir / BENCH_FILE, row)
            if max(row["milliseconds"] for row in rows) > 1e3 * config.bench.seconds:
                print(f"skipped larger batches: bench.seconds={config.bench.seconds}")
                break


def _measure(config: ConfigDict, task: str, batch: int, peak: float) -> list[dict[str, Any]]:
    """Returns a row for each form; its `ratio` is that of its time to the last form's time."""
    training, size = task == "step", config.data.image_size
    programs = _steps(config, batch) if training else _forwards(config, batch)
    times = time_interleaved({program.form: program.run for program in programs}, ROUNDS)
    devices, passes = (jax.device_count(), 3) if training else (1, 1)
    rows = []
    for program in programs:
        net, variables = program.net, program.variables
        macs = count_macs(net, variables, size)
        seconds = statistics.median(times[program.form])
        operations = 2 * macs * passes * batch / devices
        rows.append(
            {
                "model": config.model.name,
                "device": f"{jax.devices()[0].device_kind} x{devices}",
                "dtype": config.model.dtype,
                "image_size": size,
                "form": program.form,
                "task": task,  # a training step, or a forward pass in evaluation mode
                "batch": batch,
                "parameters": count_parameters(variables),
                "macs": macs,  # per image, like the next field
                "winograd_multiplications": count_winograd_multiplications(net, variables, size),
                "temporaries": program.temporaries,  # bytes besides arguments and results
                "compile_seconds": program.compile_seconds,
                "milliseconds": 1e3 * seconds,  # per batch
                "images_per_second": batch / seconds,
                "share_of_peak": operations / seconds / peak,
                "ratio": ratio(times, program.form, programs[-1].form),
            }
        )
    return rows


def _forwards(config: ConfigDict, batch: int) -> list[_Program]:
    """Compiles all forms in evaluation mode."""
    nets = {form: make_net(form_config) for form, form_config in _forms(config).items()}
    forms = {form: (net, init(net, jax.random.key(0))) for form, net in nets.items()}
    forms["fused"] = fuse(*forms["train form"])
    size = config.data.image_size
    images = jnp.zeros((batch, size, size, 3), nets["train form"].dtype)
    return [
        _compile(form, net, variables, jit(partial(net.apply, train=False)), variables, images)
        for form, (net, variables) in forms.items()
    ]


def _steps(config: ConfigDict, batch: int) -> list[_Program]:
    """Compiles training steps, with the optimizer, of the train form and the plain net."""
    programs, size = [], config.data.image_size
    images = jnp.zeros((batch, size, size, 3), jnp.uint8)
    rows = {"image": images, "label": jnp.zeros(batch, jnp.int32), "mask": jnp.ones(batch)}
    for form, form_config in _forms(config).items():
        form_config.train.batch_size = batch
        experiment = build(form_config, open_data=False)
        net, state = experiment.net, fresh_state(experiment)
        step = jit_train_step(state, experiment.mesh, experiment.step_options)
        arguments = state, shard_batch(rows, experiment.mesh), jax.random.key(0)
        programs.append(_compile(form, net, abstract(net), step, *arguments, run=repeated_step))
    return programs


def _forms(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the config of the train form, and that of the plain net unless the net is fused."""
    forms = {"train form": config.copy_and_resolve_references()}
    if not make_net(config).is_fused:
        forms["plain"] = config.copy_and_resolve_references()
        forms["plain"].model.update(block="plain", branches=None, branch_statistics=None)
    return forms


def repeated_step(step: Callable[..., Any], state: Any, data: Any, key: Any) -> Callable[[], Any]:
    """Returns a function that takes the next step at each call, since a step donates its state."""

    def take() -> Any:
        nonlocal state
        state, metrics = step(state, data, key)
        return metrics

    return take


def _compile(
    form: str,
    net: Net,
    variables: Any,
    function: jax.stages.Wrapped,
    *arguments: Any,
    run: Callable[..., Callable[[], Any]] = partial,
) -> _Program:
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    temporaries = temporaries_bytes(compiled)
    return _Program(form, net, variables, run(compiled, *arguments), temporaries, seconds)


def _line(row: dict[str, Any]) -> str:
    temporaries = row["temporaries"]  # None if the backend does not report it
    megabytes = "-" if temporaries is None else f"{temporaries / 1e6:.0f}"
    return (
        f"{row['form']:<12} {row['batch']:>5} {row['parameters'] / 1e6:>9.2f} "
        f"{row['macs'] / 1e9:>7.2f} {row['winograd_multiplications'] / 1e9:>7.2f} "
        f"{megabytes:>8} {row['compile_seconds']:>9.1f} "
        f"{row['milliseconds']:>9.1f} {row['images_per_second']:>9.1f} "
        f"{row['share_of_peak']:>7.0%} {row['ratio']:>9.2f}"
    )
