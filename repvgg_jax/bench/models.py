"""`--mode=bench`: measures a model in its train form, as a plain net, and fused."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from repvgg_jax.bench.counting import count_macs, count_parameters, count_winograd_multiplications
from repvgg_jax.bench.table import form_table, header, legend, row_line, show_progress
from repvgg_jax.bench.timing import peak_rate, quartiles, ratio, time_interleaved
from repvgg_jax.config.build import build, make_net
from repvgg_jax.config.describe import model_name
from repvgg_jax.config.fields import check_values
from repvgg_jax.config.resolve import resolve
from repvgg_jax.config.workdir import named_write_errors
from repvgg_jax.errors import UsageError
from repvgg_jax.fusion.fuse import fuse
from repvgg_jax.nets import Net, abstract, init
from repvgg_jax.runtime.compilation import temporaries_bytes
from repvgg_jax.runtime.files import append_row
from repvgg_jax.runtime.mesh import shard_batch
from repvgg_jax.training.state import fresh_state
from repvgg_jax.training.step import jit_train_step
from repvgg_jax.version import __version__, git_commit

BENCH_FILE = "bench.jsonl"
ROUNDS = 5


@dataclass(frozen=True)
class _Form:
    """A form of the model, without arrays."""

    name: str  # "train form", "plain" (one convolution and BatchNorm per layer), or "fused"
    config: ConfigDict | None  # of a run that trains it; None for the fused form of another
    make: Callable[[], tuple[Net, Any]]  # returns the net and variables
    counts: dict[str, int]  # parameters, and operations per image


@dataclass(frozen=True)
class _Program:
    """A compiled program of one form, and a function that runs it once."""

    form: _Form
    run: Callable[[], Any]
    temporaries: int | None
    compile_seconds: float


def run_bench(config: ConfigDict, workdir: Path) -> None:
    """Measures a model, prints tables, and appends rows to `<workdir>/bench.jsonl`.

    Raises:
      UsageError: if the config cannot run.
    """
    config = resolve(config)
    check_values(config)
    batches = config.bench.batch_sizes
    if not batches or not all(isinstance(batch, int) and batch > 0 for batch in batches):
        raise UsageError(f"bench.batch_sizes={batches} must be positive integers")
    with named_write_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    size, kind = config.data.image_size, jax.devices()[0].device_kind
    print(f"{model_name(config)}, {size}x{size} pixels, on {kind}")
    print(
        f"batches of {', '.join(map(str, sorted(batches)))} images (bench.batch_sizes, not "
        'train.batch_size); for others: --config.bench.batch_sizes="(8, 32)"',
        flush=True,
    )
    net = make_net(config)
    forms = forms_of(config)
    show_progress("measuring the fastest matrix product and convolution ...")
    peak = peak_rate(net.dtype, net.conv_algorithm)
    show_progress("")
    print(legend(peak))
    print(form_table({"form": form.name, **form.counts} for form in forms))
    if not net.fusable:
        print(f"block={net.block!r} cannot be fused")
    trained = [form for form in forms if form.config is not None]
    for task, measured in (("forward", forms), ("step", trained)):
        _run_task(task, measured, config, peak, workdir / BENCH_FILE)
    print(f"\nrows: {workdir / BENCH_FILE}")


def _run_task(task: str, forms: list[_Form], config: ConfigDict, peak: float, path: Path) -> None:
    """Measures forward passes on one device, or training steps on all, at all batch sizes."""
    reference = forms[-1].name if len(forms) > 1 else None
    print(f"\n{header(task, reference)}")
    for batch in sorted(config.bench.batch_sizes):
        if task == "step" and batch % jax.device_count():
            print(f"skipped batch {batch}: not a multiple of {jax.device_count()} devices")
            continue
        rows = _measure(config, task, forms, batch, peak)
        show_progress("")
        for row in rows:
            print(row_line(row, reference), flush=True)
            append_row(path, row)
        if uneven := [row["form"] for row in rows if _is_uneven(row)]:
            print(
                f"uncertain, since rounds differ by more than a quarter: {', '.join(uneven)}; "
                "measure again when nothing else runs"
            )
        if faster := [row["form"] for row in rows if row["share_of_peak"] is None]:
            print(f"share of peak left out, since it would exceed 100%: {', '.join(faster)}")
        if max(row["milliseconds"] for row in rows) > 1e3 * config.bench.seconds:
            print(f"skipped larger batches: bench.seconds={config.bench.seconds}")
            break


def _is_uneven(row: Mapping[str, Any]) -> bool:
    """Returns True if the quartiles of the rounds differ by more than a quarter of the median."""
    low, high = row["milliseconds_quartiles"]
    return high - low > 0.25 * row["milliseconds"]


def _measure(
    config: ConfigDict, task: str, forms: list[_Form], batch: int, peak: float
) -> list[dict[str, Any]]:
    """Returns a row for each form; `ratio` is its time divided by that of the last form."""
    training = task == "step"
    compile_form = _step if training else _forward
    programs = []
    for form in forms:
        show_progress(f"{task}, batch {batch}: compiling {form.name} ...")
        programs.append(compile_form(form, config.data.image_size, batch))
    show_progress(f"{task}, batch {batch}: measuring {', '.join(form.name for form in forms)} ...")
    times = time_interleaved({program.form.name: program.run for program in programs}, ROUNDS)
    devices, passes = (jax.device_count(), 3) if training else (1, 1)
    code = {"versions": {"repvgg_jax": __version__, "jax": jax.__version__}, **git_commit()}
    rows = []
    for program in programs:
        form = program.form
        seconds = statistics.median(times[form.name])
        rate = 2 * form.counts["macs"] * passes * batch / devices / seconds
        rows.append(
            {
                "model": config.model.name,
                "device": f"{jax.devices()[0].device_kind} x{devices}",
                "dtype": config.model.dtype,
                "image_size": config.data.image_size,
                "form": form.name,
                "task": task,  # a training step, or a forward pass in evaluation mode
                "batch": batch,
                **form.counts,
                "temporaries": program.temporaries,  # bytes besides arguments and results
                "compile_seconds": program.compile_seconds,
                "milliseconds": 1e3 * seconds,  # per batch; the median of the rounds
                "milliseconds_quartiles": [1e3 * each for each in quartiles(times[form.name])],
                "rounds": ROUNDS,
                "images_per_second": batch / seconds,
                "operations_per_second": rate,  # of one device
                "share_of_peak": rate / peak if rate <= peak else None,
                "ratio": ratio(times, form.name, forms[-1].name),
                **code,
            }
        )
    return rows


def forms_of(config: ConfigDict) -> list[_Form]:
    """Returns the train form, the plain net if it differs, and the fused form if there is one.

    For a net that is fused already, returns this form only.
    """
    size = config.data.image_size
    own = config.copy_and_resolve_references()
    net = make_net(own)
    if net.is_fused:
        return [_form("fused", net, own, size)]
    forms = [_form("train form", net, own, size)]
    plain_config = config.copy_and_resolve_references()
    plain_config.model.update(block="plain", branches=None, branch_statistics=None)
    plain = make_net(plain_config)
    if plain != net:
        forms.append(_form("plain", plain, plain_config, size))
    if net.fusable:
        shapes = jax.eval_shape(lambda variables: fuse(net, variables)[1], abstract(net))
        counts = _counts(net.clone(block="fused"), shapes, size)
        forms.append(_Form("fused", None, lambda: fuse(*_initialized(net)), counts))
    return forms


def _form(name: str, net: Net, config: ConfigDict, size: int) -> _Form:
    counts = _counts(net, abstract(net), size)
    return _Form(name, config, partial(_initialized, net), counts)


def _initialized(net: Net) -> tuple[Net, Any]:
    return net, init(net, jax.random.key(0))


def _counts(net: Net, shapes: Any, size: int) -> dict[str, int]:
    return {
        "parameters": count_parameters(shapes),
        "macs": count_macs(net, shapes, size),  # per image, like the next field
        "winograd_multiplications": count_winograd_multiplications(net, shapes, size),
    }


def _forward(form: _Form, size: int, batch: int) -> _Program:
    """Compiles a form in evaluation mode."""
    net, variables = form.make()
    images = jnp.zeros((batch, size, size, 3), net.dtype)
    return _compile(form, jax.jit(partial(net.apply, train=False)), variables, images)


def _step(form: _Form, size: int, batch: int) -> _Program:
    """Compiles a training step of a form, with the optimizer."""
    images = jnp.zeros((batch, size, size, 3), jnp.uint8)
    rows = {"image": images, "label": jnp.zeros(batch, jnp.int32), "mask": jnp.ones(batch)}
    config = form.config.copy_and_resolve_references()
    config.train.batch_size = batch
    experiment = build(config, open_data=False)
    state = fresh_state(experiment)
    step = jit_train_step(state, experiment.mesh, experiment.step_options)
    arguments = state, shard_batch(rows, experiment.mesh), jax.random.key(0)
    return _compile(form, step, *arguments, run=repeated_step)


def repeated_step(step: Callable[..., Any], state: Any, data: Any, key: Any) -> Callable[[], Any]:
    """Returns a function that takes the next step at each call, since a step donates its state."""

    def take() -> Any:
        nonlocal state
        state, metrics = step(state, data, key)
        return metrics

    return take


def _compile(
    form: _Form,
    function: jax.stages.Wrapped,
    *arguments: Any,
    run: Callable[..., Callable[[], Any]] = partial,
) -> _Program:
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return _Program(form, run(compiled, *arguments), temporaries_bytes(compiled), seconds)
