"""The output of the benchmark of GPUs: a line per figure, and tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.benchmarks.gpu.rows import (
    COMPILED,
    COPY,
    EAGER,
    FUSED,
    MOMENTS,
    OURS,
    PLAIN_STEP,
    PREPARED,
    PRODUCT,
    STEP,
    TRAIN_FORM,
    TRAINING,
    Figure,
)
from experiments.benchmarks.gpu.sizes import Sizes
from experiments.benchmarks.markdown import markdown
from repvgg_jax.bench.table import digits

Row = Mapping[str, Any]
_Measured = Mapping[tuple[Figure, str], Row]  # by figure and program
_ABSENT = "not measured: "
# The figure of PyTorch that each of ours is compared with.
_COMPARED = {name: name for name in (STEP, PLAIN_STEP, FUSED, PRODUCT)} | {PREPARED: FUSED}


def line(row: Row) -> str:
    """Returns a row as one line of text."""
    if "figure" not in row:
        return f"{row['part']}: {row['error']}"
    name = f"{_figure(row)}, {row['program']}"
    if "error" in row:
        return f"{name}: {_ABSENT}{row['error']}"
    figures = []
    if "milliseconds" in row:
        figures.append(f"{digits(row['milliseconds'])} ms")
    if row.get("images_per_second"):
        figures.append(f"{row['images_per_second']:,.0f} images/s")
    if row.get("waiting_for_data") is not None:
        figures.append(f"{row['waiting_for_data']:.0%} of the time waiting for data")
    return f"{name}: {', '.join(figures)}"


def tables(rows: Sequence[Row], sizes: Sizes) -> str:
    """Returns the tables of all rows, and what they were measured on."""
    measured = {(_figure(row), row["program"]): row for row in rows if _is_measured(row)}
    parts = [_setup(rows, sizes), _comparison(measured, sizes.batch), _own(measured, sizes)]
    parts += [_peaks(measured, sizes), _training(measured), _missing(rows)]
    return "\n\n".join(part for part in parts if part)


def _figure(row: Row) -> Figure:
    return Figure(row["figure"], row["batch"])


def _is_measured(row: Row) -> bool:
    return "figure" in row and "error" not in row


def _setup(rows: Sequence[Row], sizes: Sizes) -> str:
    devices = dict.fromkeys(row["device"] for row in rows if "device" in row)
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row.get("versions", {})
    names = {"jax": "JAX", "flax": "Flax", "torch": "PyTorch"}
    found = [f"{text} {versions[name]}" for name, text in names.items() if name in versions]
    commit = (rows[0]["commit"] or "unknown")[:7] + (" and changes" if rows[0]["dirty"] else "")
    model = sizes.model if sizes.net == "{}" else f"{sizes.model} with {sizes.net}"
    return (
        f"{' and '.join(devices) or 'no device'}, {', '.join([*found, rows[0]['date']])}, commit "
        f"{commit}. {model} at {sizes.image_size} pixels, {sizes.dtype}; medians."
    )


def _comparison(measured: _Measured, batch: int) -> str:
    """Returns the table of milliseconds beside PyTorch's, the fastest in bold."""
    names = (STEP, MOMENTS, PLAIN_STEP, TRAIN_FORM, FUSED, PREPARED)
    figures = [Figure(name, batch) for name in names]
    figures += [Figure(FUSED, 1), Figure(PREPARED, 1), Figure(PRODUCT)]
    lines = []
    for figure in dict.fromkeys(figures):
        other = figure._replace(name=_COMPARED.get(figure.name, ""))
        programs = [(figure, OURS), (other, EAGER), (other, COMPILED)]
        times = [measured.get(key, {}).get("milliseconds") for key in programs]
        known = [time for time in times if time is not None]
        if not known:
            continue
        cells = []
        for (of, program), time in zip(programs, times, strict=True):
            # A matrix product is a single kernel, so torch.compile has nothing to improve.
            absent = not of.name or (of.name, program) == (PRODUCT, COMPILED)
            text = ("-" if absent else "not measured") if time is None else digits(time)
            fastest = len(known) > 1 and time == min(known)
            cells.append(f"**{text}**" if fastest else text)
        ours, *theirs = times
        cells += ["-" if None in (ours, time) else f"{ours / time:.2f}" for time in theirs]
        lines.append([str(figure), *cells])
    header = ["milliseconds", OURS, EAGER, COMPILED, "ours / eager", "ours / compiled"]
    return markdown(header, lines)


def _own(measured: _Measured, sizes: Sizes) -> str:
    """Returns the table of further figures of this package's programs."""
    lines = []
    for (figure, program), row in measured.items():
        if program == OURS and figure.batch and "milliseconds" in row:
            share, bytes_ = row.get("share_of_product"), row["temporaries"]
            lines.append(
                [
                    str(figure),
                    digits(row["milliseconds"]),
                    digits(row["fastest"]),
                    f"{row['images_per_second']:,.0f}",
                    "-" if share is None else f"{share:.0%}",
                    "-" if bytes_ is None else f"{bytes_ / 1e9:.2f}",
                    f"{row['compile_seconds']:.1f}",
                ]
            )
    columns = ("ms", "fastest", "images/s", "of the product", "temporaries GB", "compile s")
    return markdown([OURS, *columns], lines)


def _peaks(measured: _Measured, sizes: Sizes) -> str:
    product, copy = (measured.get((Figure(name), OURS)) for name in (PRODUCT, COPY))
    sentences = []
    if product:
        rate = digits(product["operations_per_second"] / 1e12)
        side = sizes.product
        sentences.append(f"The product of two {side} x {side} matrices runs at {rate} TFLOP/s.")
    if copy:
        rate = digits(copy["bytes_per_second"] / 1e12)
        sentences.append(f"A copy reads and writes {rate} TB/s.")
    return " ".join(sentences)


def _training(measured: _Measured) -> str:
    """Returns the table of small nets."""
    lines = [
        [
            figure.name.removeprefix(f"{TRAINING}, "),
            str(figure.batch),
            f"{row['images_per_second']:,.0f}",
            f"{row['waiting_for_data']:.0%}",
            f"{row['first_step_seconds']:.1f}",
            f"{row['compile_seconds']:.1f}",
        ]
        for (figure, _), row in measured.items()
        if figure.name.startswith(TRAINING + ",")
    ]
    columns = ("batch", "images/s", "waiting for data", "first step s", "of it compiling s")
    return markdown([TRAINING, *columns], lines)


def _missing(rows: Iterable[Row]) -> str:
    errors = [line(row).replace(_ABSENT, "") for row in rows if "error" in row]
    return "\n".join(["Not measured:", *(f"- {error}" for error in errors)]) if errors else ""
