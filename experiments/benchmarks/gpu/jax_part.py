"""Training steps and forward passes of this package."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp

import repvgg_jax as rj
from experiments.benchmarks.gpu.rows import (
    COPY,
    FUSED,
    MOMENTS,
    PLAIN_STEP,
    PREPARED,
    PRODUCT,
    STEP,
    TRAIN_FORM,
    Figure,
    Rows,
    our_rows,
)
from experiments.benchmarks.gpu.sizes import Sizes
from experiments.benchmarks.measuring import compile_all, time_together
from experiments.benchmarks.programs import (
    Program,
    jax_forward,
    jax_prepared_forward,
    jax_program,
    jax_step,
)
from repvgg_jax.bench.counting import count_macs
from repvgg_jax.bench.timing import ratio
from repvgg_jax.nets import Net

_PRODUCT = Figure(PRODUCT)


class _Task(NamedTuple):
    """A function that compiles a program, with the operations and bytes of a run, if known."""

    make: Callable[[], Program]
    operations: int | None = None
    bytes: int | None = None


_Tasks = Mapping[Figure, _Task]
_Programs = Mapping[Figure, Program]


def measure(sizes: Sizes, file: TextIO) -> None:
    """Measures groups of programs; those of a group are interleaved."""
    rows = our_rows(sizes.platform, file)
    steps, passes, passes_of_one = _tasks(sizes)
    groups = [(_references(sizes), 2), (steps, 1), (passes, 2)]
    # As in PyTorch, a pass of one image has the caches to itself.
    groups += [({figure: task}, 5) for figure, task in passes_of_one.items()]
    tasks = {figure: task for group, _ in groups for figure, task in group.items()}
    programs, errors = compile_all({f: task.make for f, task in tasks.items()})
    for figure, error in errors.items():
        rows.add_error(figure, error)
    for group, times in groups:
        _measure_group(group, tasks, programs, times * sizes.rounds, rows)


def _references(sizes: Sizes) -> _Tasks:
    """Returns a matrix product and a copy, which show what the device can do."""
    dtype, side = jnp.dtype(sizes.dtype), sizes.product

    def product() -> Program:
        matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
        return jax_program(jnp.matmul, matrix, matrix)

    def copy() -> Program:
        # Without the addition, nothing would be computed.
        return jax_program(lambda elements: elements + 1, jnp.ones(sizes.copy, dtype))

    return {
        _PRODUCT: _Task(product, operations=2 * side**3),
        Figure(COPY): _Task(copy, bytes=2 * sizes.copy * dtype.itemsize),
    }


def _tasks(sizes: Sizes) -> tuple[_Tasks, _Tasks, _Tasks]:
    """Returns training steps, forward passes, and forward passes of one image."""
    batch, size = sizes.batch, sizes.image_size
    net, plain = sizes.make_net(), sizes.make_net(block="plain")
    key = jax.random.key(0)
    variables = rj.init(net, key)
    fused_net, fused = rj.fuse(net, variables)
    macs, fused_macs = count_macs(net, variables, size), count_macs(fused_net, fused, size)

    def step(net: Net, variables: Any, macs: int) -> _Task:
        # The backward pass has twice the operations of the forward pass.
        return _Task(partial(jax_step, net, variables, batch, size), 6 * batch * macs)

    def forward(compile_pass: Callable[..., Program], batch: int) -> _Task:
        return _Task(partial(compile_pass, fused_net, fused, batch, size), 2 * batch * fused_macs)

    steps = {
        Figure(STEP, batch): step(sizes.make_net(branch_statistics="batch"), variables, macs),
        Figure(MOMENTS, batch): step(sizes.make_net(branch_statistics="moments"), variables, macs),
        Figure(PLAIN_STEP, batch): step(plain, rj.init(plain, key), fused_macs),
    }
    train_form = partial(jax_forward, net, variables, batch, size)
    passes = {
        Figure(TRAIN_FORM, batch): _Task(train_form, 2 * batch * macs),
        Figure(FUSED, batch): forward(jax_forward, batch),
        Figure(PREPARED, batch): forward(jax_prepared_forward, batch),
    }
    of_one = {
        Figure(FUSED, 1): forward(jax_forward, 1),
        Figure(PREPARED, 1): forward(jax_prepared_forward, 1),
    }
    return steps, passes, of_one


def _measure_group(
    figures: Iterable[Figure], tasks: _Tasks, programs: _Programs, rounds: int, rows: Rows
) -> None:
    """Measures programs interleaved, and with several of them the reference matrix product."""
    figures = [figure for figure in figures if figure in programs]
    measured = {*figures, _PRODUCT} if len(figures) > 1 else set(figures)
    runs = {str(f): programs[f].run for f in sorted(measured & programs.keys(), key=str)}
    times, errors = time_together(runs, rounds)
    for figure in figures:
        name, task, program = str(figure), tasks[figure], programs[figure]
        if name in errors:
            rows.add_error(figure, errors[name])
            continue
        values = {"temporaries": program.temporaries, "compile_seconds": program.compile_seconds}
        seconds = statistics.median(times[name])
        if task.bytes:
            values["bytes_per_second"] = task.bytes / seconds
        if task.operations:
            values["operations_per_second"] = task.operations / seconds
        if task.operations and str(_PRODUCT) in times:
            of_product = ratio(times, str(_PRODUCT), to=name)
            values["share_of_product"] = of_product * task.operations / tasks[_PRODUCT].operations
        rows.add_times(figure, times[name], **values)
