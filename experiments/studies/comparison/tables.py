"""The tables of the comparison: costs, speed, pairs, kernels and guidelines."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.benchmarks.markdown import markdown
from experiments.studies.comparison import guidelines, kernels, nets
from experiments.studies.comparison.measured import Measured, Setup
from experiments.studies.comparison.published import PAIRS, PAPERS_GPU, PUBLISHED, published_at
from experiments.studies.comparison.sizes import Row
from repvgg_jax.bench.table import digits

_ABSENT = "-"


def label(name: str) -> str:
    """Returns a net's name in the literature, or its name here."""
    return PUBLISHED[name].label if name in PUBLISHED else name


def speed_table(measured: Measured) -> str:
    """Returns the table of speeds, the fastest forward pass first."""
    names = dict.fromkeys([*measured.forward, *measured.steps])
    order = sorted(names, key=lambda name: -(measured.speed(measured.forward, name) or 0))
    than = f"x {label(measured.reference)}"
    header = ["net", "model", "pixels", "top-1, %", "parameters, M", "GMACs", "Winograd, G"]
    header += ["fused, images/s", than, f"{than}, 1080Ti", "temporaries, MB"]
    header += ["training, images/s", than, "temporaries, MB"]
    lines = []
    for name in order:
        forward, step = measured.forward.get(name, {}), measured.steps.get(name, {})
        size = (forward or step)["image_size"]
        count = measured.counts.get((name, size), {})
        published = published_at(name, size)
        line = [f"**{label(name)}**" if name.startswith("repvgg") else label(name)]
        line += [f"`{name}`", str(size)]
        line.append(f"{published.top1:.2f}" if published else _ABSENT)
        keys = ("fused_parameters", 1e6), ("fused_macs", 1e9), ("winograd_multiplications", 1e9)
        line += [_scaled(count.get(key), unit) for key, unit in keys]
        line += [_rate(forward), _times(measured.speed(measured.forward, name))]
        line += [_times(published and published_speed(name, measured.reference))]
        line += [_scaled(forward.get("temporaries"), 1e6), _rate(step)]
        line += [_times(measured.speed(measured.steps, name))]
        lines.append([*line, _scaled(step.get("temporaries"), 1e6)])
    return markdown(header, lines)


def pair_table(measured: Measured) -> str:
    """Returns the speedups of RepVGG over nets of about its accuracy, here and in the paper.

    It is empty for images of another size, at which the accuracies are unknown.
    """
    header = ["RepVGG / other net", "difference in top-1", "speedup on a 1080Ti"]
    header += ["here, fused", "here, training"]
    lines = []
    for ours, theirs in PAIRS:
        here = [
            _speedup(measured, part, ours, theirs) for part in (measured.forward, measured.steps)
        ]
        if any(here) and measured.image_size is None:
            gain = PUBLISHED[ours].top1 - PUBLISHED[theirs].top1
            text = f"{gain:+.2f}".replace("-", "\N{MINUS SIGN}")
            cells = [_times(published_speed(ours, theirs)), *map(_times, here)]
            lines.append([f"{label(ours)} / {label(theirs)}", text, *cells])
    return markdown(header, lines)


def verdict(measured: Measured, setup: Setup) -> str:
    """Returns a line that says where RepVGG stands on a device, beside the paper's GPU."""
    found = [
        (here, there)
        for ours, theirs in PAIRS
        if (here := _speedup(measured, measured.forward, ours, theirs))
        and (there := published_speed(ours, theirs))
    ]
    if not found or measured.image_size is not None:
        return ""
    here, there = ([pair[side] for pair in found] for side in (0, 1))
    faster = [sum(value > 1 for value in values) for values in (here, there)]
    means = [statistics.geometric_mean(values) for values in (here, there)]
    return (
        f"**On {setup}, batch {measured.batch}, RepVGG is faster than the other net in {faster[0]} "
        f"of {len(found)} pairs; the geometric mean of its speedups is {means[0]:.2f}. In the "
        f"paper ({PAPERS_GPU}), it is faster in {faster[1]} of them; the mean is {means[1]:.2f}.**"
    )


def published_speed(name: str, other: str) -> float | None:
    """Returns the speed of a net divided by another's, in the paper; None if one is missing."""
    speeds = [PUBLISHED[net].speed if net in PUBLISHED else None for net in (name, other)]
    return _quotient(*speeds)


def _speedup(measured: Measured, part: Mapping[str, Row], ours: str, theirs: str) -> float | None:
    speeds = [measured.speed(part, name) for name in (ours, theirs)]
    return _quotient(*speeds)


def count_table(rows: Iterable[Row]) -> str:
    """Returns the table of what does not depend on a device, the fewest operations first."""
    header = ["net", "model", "source of top-1", "top-1, %", "pixels"]
    header += ["parameters, M: train form", "fused", "GMACs: train form", "fused", "Winograd, G"]
    lines = []
    counts = [row for row in rows if row["part"] == nets.COUNTS]
    for row in sorted(counts, key=lambda row: row["fused_macs"]):
        published = published_at(row["net"], row["image_size"])
        line = [label(row["net"]), f"`{row['net']}`", published.source if published else _ABSENT]
        line += [f"{published.top1:.2f}" if published else _ABSENT, str(row["image_size"])]
        line += [_scaled(row[key], 1e6) for key in ("parameters", "fused_parameters")]
        keys = ("macs", "fused_macs", "winograd_multiplications")
        lines.append([*line, *(_scaled(row[key], 1e9) for key in keys)])
    return markdown(header, lines)


def kernel_tables(rows: Iterable[Row]) -> list[str]:
    """Returns a table of kernel sizes for each shape, and a note on Winograd's algorithm."""
    texts = []
    header = ["kernel", "by", "GMACs", "ms", "effective TFLOP/s", "rate / 1x1's", "1080Ti"]
    for shape, found in _by_shape(rows, kernels.KERNELS).items():
        lines = []
        for name, row in found.items():
            rate = digits(row["operations_per_second"] / 1e12)
            line = [name, row["library"], digits(row["macs"] / 1e9), digits(row["milliseconds"])]
            lines.append([*line, rate, *map(_times, _rates(found, name, "1x1"))])
        texts.append(f"{_in_words(shape)}:\n\n{markdown(header, lines)}")
        here, there = _rates(found, "3x3", "5x5")
        if here and there:
            texts.append(
                "Effective rates count the multiply-adds of a direct convolution; Winograd's "
                "algorithm computes 4/9 or 1/4 of them. The rate of the 3x3 kernel is "
                f"{here:.2f} times that of the 5x5 here, and {there:.2f} times on the 1080Ti, "
                "whose library used that algorithm."
            )
    return texts


def _rates(found: Mapping[str, Row], name: str, other: str) -> tuple[float | None, float | None]:
    """Returns the rate of a kernel divided by another's, here and in the paper."""
    here = [
        row["speed_of_first"] * row["macs"]
        if (row := found.get(each, {})).get("speed_of_first")
        else None
        for each in (name, other)
    ]
    there = [kernels.PUBLISHED.get(each) for each in (name, other)]
    return _quotient(*here), _quotient(*there)


def _quotient(number: float | None, other: float | None) -> float | None:
    return number / other if number and other else None


def guideline_tables(rows: Iterable[Row]) -> list[str]:
    """Returns a table of the guidelines' experiments for each shape."""
    texts = []
    names = {
        (title, f"{title.partition(':')[0]}, {variant.name}"): (variant, variants[0])
        for title, variants in guidelines.VARIANTS.items()
        for variant in variants
    }
    for shape, found in _by_shape(rows, guidelines.GUIDELINES).items():
        batch = int(shape.partition("x")[0])
        lines = []
        for (title, case), (variant, first) in names.items():
            if row := found.get(case):
                line = [title if variant is first else "", variant.name]
                line += [digits(row["macs"] / batch / 1e6), digits(row["milliseconds"])]
                theirs = variant.published / first.published
                lines.append([*line, _times(row["speed_of_first"]), _times(theirs)])
        header = [
            "what varies",
            "variant",
            "MMACs per image",
            "ms",
            "relative speed",
            "paper's GPU",
        ]
        texts.append(f"{_in_words(shape)}:\n\n{markdown(header, lines)}")
    return texts


def _by_shape(rows: Iterable[Row], part: str) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["part"] == part:
            found.setdefault(row["shape"], {})[row["case"]] = row
    return found


def _in_words(shape: str) -> str:
    """Returns the text of a shape, such as "Batch 32, 56x56 pixels, 2048 channels"."""
    batch, side, *channels = shape.split("x")
    text = f"Batch {batch}, {side}x{side} pixels"
    return f"{text}, {channels[0]} channels" if channels else text


def _scaled(number: float | None, unit: float) -> str:
    return _ABSENT if number is None else digits(number / unit)


def _times(number: float | None) -> str:
    return _ABSENT if number is None else f"{number:.2f}"


def _rate(row: Row) -> str:
    return digits(row["images_per_second"]) if row else _ABSENT


def line(row: Mapping[str, Any]) -> str:
    """Returns a row as one line of text."""
    about = " ".join(str(row[name]) for name in ("part", "net", "case") if name in row)
    if "error" in row:
        return f"{about}: not measured: {row['error']}"
    if "macs" in row and "net" in row:
        return f"{about}: {row['fused_macs'] / 1e9:.3f} GMACs"
    figures = [f"{digits(row['milliseconds'])} ms"]
    if "images_per_second" in row:
        figures.append(f"{digits(row['images_per_second'])} images/s")
    if relative := row.get("speed_of_reference") or row.get("speed_of_first"):
        figures.append(f"{relative:.2f} x {row.get('reference', 'the first')}")
    return f"{about}: {', '.join(figures)}"
