"""The output of `--mode=bench`: legend, tables and progress."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LEGEND = """\
MACs, Winograd      multiply-adds per image; multiplications left with F(2x2, 3x3)
compile s, temp MB  seconds to compile; memory besides arguments and results
ms, x FORM          milliseconds per batch, the median of interleaved rounds; divided by FORM's
of peak             share of the rate above, with 2 operations per MAC, or 6 in a training step"""


def legend(peak: float) -> str:
    """Returns the explanation of the columns; `peak` is in operations per second."""
    rate = f"fastest matrix product or convolution here: {peak / 1e12:.3g} TFLOP/s"
    return f"{rate}\n\n{_LEGEND}\n"


def form_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns a table of the forms' sizes, from their rows; leaves out what does not apply."""
    lines = [("form", "parameters", "MACs", "Winograd")]
    for row in rows:
        macs, multiplications = row["macs"], row["winograd_multiplications"]
        winograd = _scaled(multiplications) if multiplications < macs else "-"
        lines.append((row["form"], _scaled(row["parameters"]), _scaled(macs), winograd))
    if all(line[-1] == "-" for line in lines[1:]):
        lines = [line[:-1] for line in lines]
    return "\n".join(_line(line, (12, 11, 9, 9)) for line in lines)


_WIDTHS = (12, 6, 10, 8, 9, 10, 8, 13)


def header(task: str, reference: str | None) -> str:
    """Returns the header of a task's rows; `reference` is the form that ratios are relative to."""
    words = [task, "batch", "compile s", "temp MB", "ms", "images/s", "of peak"]
    return _line([*words, f"x {reference}"] if reference else words, _WIDTHS)


def row_line(row: Mapping[str, Any], reference: str | None) -> str:
    """Returns a line of the table below `header`; unknown figures are dashes."""
    temporaries, share = row["temporaries"], row["share_of_peak"]
    words = [
        row["form"],
        str(row["batch"]),
        f"{row['compile_seconds']:.1f}",
        "-" if temporaries is None else digits(temporaries / 1e6),
        digits(row["milliseconds"]),
        f"{row['images_per_second']:,.0f}",
        "-" if share is None else f"{share:.1%}",
    ]
    return _line([*words, f"{row['ratio']:.2f}"] if reference else words, _WIDTHS)


def _line(words: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (f"{word:>{width}}" for word, width in zip(words, widths, strict=False))
    return " ".join([f"{first.strip():<{widths[0]}}", *others])


def _scaled(number: float) -> str:
    """Formats a count with a unit: `943 k`, `1.51 G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{digits(number / size)} {unit}"
    return f"{number:.0f}"


def digits(number: float) -> str:
    """Formats a positive number with three significant digits, or more if it is above 1,000."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def show_progress(text: str) -> None:
    """Shows on stderr what is being done; on a terminal, replaces the previous text.

    An empty text clears the line for the next row of the table.
    """
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
