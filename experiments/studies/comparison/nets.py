"""The costs of nets, and the speed of their forward passes and training steps."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

import repvgg_jax as rj
from experiments.benchmarks.measuring import as_one_line, compile_all, time_together
from experiments.benchmarks.programs import Program, jax_prepared_forward, jax_step, noise_like
from experiments.studies.comparison.sizes import Rows, Sizes, open_rows
from repvgg_jax.bench.counting import count_macs, count_parameters, count_winograd_multiplications
from repvgg_jax.bench.timing import ratio
from repvgg_jax.nets import Net, abstract

FORWARD, STEP, COUNTS = "nets", "steps", "counts"  # names of the parts


def measure_forward(sizes: Sizes, file: TextIO) -> None:
    """Measures forward passes of the fused form, with weights converted before."""
    _measure(open_rows(FORWARD, sizes, file), sizes, _forward)


def measure_steps(sizes: Sizes, file: TextIO) -> None:
    """Measures training steps of the train form, by plain SGD."""
    _measure(open_rows(STEP, sizes, file), sizes, _step)


def count(sizes: Sizes, file: TextIO) -> None:
    """Counts parameters and operations per image of both forms, without a device."""
    rows = open_rows(COUNTS, sizes, file, timed=False)
    for name in sizes.names():
        about = {"net": name, "image_size": sizes.size_of(name)}
        if rows.missing(**about):
            try:
                rows.add(**about, **_counts(rj.create(name), about["image_size"]))
            except Exception as error:
                rows.add(**about, error=as_one_line(error))


def fused_form(net: Net) -> Net:
    """Returns the form to deploy: the fused form, or the net itself if it cannot be fused."""
    return net.clone(block="fused") if net.fusable else net


def _counts(net: Net, size: int) -> dict[str, Any]:
    fused = fused_form(net)
    shapes, fused_shapes = abstract(net), abstract(fused)
    return {
        "parameters": count_parameters(shapes),
        "fused_parameters": count_parameters(fused_shapes),
        "macs": count_macs(net, shapes, size),
        "fused_macs": count_macs(fused, fused_shapes, size),
        "winograd_multiplications": count_winograd_multiplications(fused, fused_shapes, size),
    }


def _forward(sizes: Sizes, name: str) -> Program:
    net = fused_form(rj.create(name, dtype=sizes.dtype))
    return jax_prepared_forward(net, noise_like(abstract(net)), sizes.batch, sizes.size_of(name))


def _step(sizes: Sizes, name: str) -> Program:
    net = rj.create(name, dtype=sizes.dtype)
    return jax_step(net, noise_like(abstract(net)), sizes.batch, sizes.size_of(name))


def _measure(rows: Rows, sizes: Sizes, make: Callable[[Sizes, str], Program]) -> None:
    """Measures the nets that have no row yet, several interleaved, and always the reference.

    If the reference fails, the others' rows have no ratio, and the next call measures them again.

    Within a process, XLA keeps its choice of an algorithm for a layer. On a GPU, a later group thus
    only tunes layers of new shapes: after ResNet-50, ResNet-101 has none.
    """
    shared = {"batch": sizes.batch, "reference": sizes.reference}

    def about(name: str) -> dict[str, Any]:
        return {"net": name, "image_size": sizes.size_of(name), **shared}

    names = [name for name in sizes.names() if rows.missing(**about(name))]
    names.sort(key=lambda name: name != sizes.reference)  # its program is that of all groups
    reference: dict[str, Program] = {}
    for start in range(0, len(names), sizes.together):
        group = names[start : start + sizes.together]
        wanted = dict.fromkeys([*group, sizes.reference] if start == 0 else group)
        makers = {name: partial(make, sizes, name) for name in wanted}
        programs, errors = compile_all(makers, len(makers))
        programs = reference | programs
        reference = {name: programs[name] for name in programs if name == sizes.reference}
        runs = {name: program.run for name, program in programs.items()}
        times, failed = time_together(runs, sizes.rounds)
        errors |= failed
        for name in group:
            if name in times:
                rows.add(**about(name), **_figures(name, times, programs[name], sizes))
        for name, error in errors.items():
            rows.add(**about(name), error=error)


def _figures(name: str, times: Any, program: Program, sizes: Sizes) -> dict[str, Any]:
    seconds = times[name]
    median = statistics.median(seconds)
    return {
        "milliseconds": rounded(1e3 * median),
        "fastest": rounded(1e3 * min(seconds)),
        "runs": len(seconds),
        "images_per_second": rounded(sizes.batch / median),
        # In the same rounds, in which other work on the machine slows down both.
        "speed_of_reference": rounded(ratio(times, sizes.reference, to=name))
        if sizes.reference in times
        else None,
        "temporaries": program.temporaries,
        "compile_seconds": rounded(program.compile_seconds),
    }


def rounded(number: float) -> float:
    """Returns a number with four significant digits."""
    return float(f"{number:.4g}")
