"""Flags of benchmarks: sizes, the time for all and the parts; and the packages that they need."""

import argparse
import dataclasses
import importlib.util
from collections.abc import Collection
from typing import Any

from repvgg_jax.errors import UsageError


def flag_field(default: Any, text: str, shown: str = "") -> Any:
    """Returns a field of a dataclass of sizes for which the command has a flag.

    Args:
      default: value without the flag.
      text: help text.
      shown: name of the default in the help text; by default its value.
    """
    return dataclasses.field(default=default, metadata={"help": text, "shown": shown or default})


def add_flags(parser: argparse.ArgumentParser, sizes: type, parts: Collection[str]) -> None:
    """Adds a flag for each `flag_field` of the dataclass `sizes`, and --minutes and --only."""
    for field in _with_flags(sizes):
        text = f"{field.metadata['help']}; {field.metadata['shown']} by default"
        parser.add_argument(
            f"--{field.name}",
            type=type(field.default),
            default=field.default,
            help=text.replace("%", "%%"),
        )
    parser.add_argument("--minutes", type=float, default=5.0, help="time for all; 5 by default")
    names = ",".join(parts)
    parser.add_argument("--only", default=names, help=f"parts to measure, of {names}")


def given_sizes(options: argparse.Namespace, sizes: type) -> dict[str, Any]:
    """Returns the values of the flags of the dataclass `sizes`."""
    return {field.name: getattr(options, field.name) for field in _with_flags(sizes)}


def check_parts(only: str, parts: Collection[str]) -> None:
    """Raises UsageError if a name in `only`, which has commas between them, is not a part."""
    if unknown := [name for name in only.split(",") if name not in parts]:
        raise UsageError(f"--only={only}: no part {unknown[0]!r}; choose from {', '.join(parts)}")


def _with_flags(sizes: type) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(sizes) if "help" in field.metadata]


def check_installed(*packages: str, extra: str | None = None) -> None:
    """Raises UsageError, with advice, if a package is not installed; `extra` is the one with it."""
    if missing := [name for name in packages if not importlib.util.find_spec(name)]:
        wanted = f"-e '.[{extra}]'" if extra else " ".join(packages)
        raise UsageError(f"{missing[0]} is not installed: pip install {wanted}")


def shape_of(text: str, count: int, flag: str, most: int | None = None) -> list[int]:
    """Returns the numbers of a shape such as 32x56x2048: `count` numbers, or up to `most`.

    Raises:
      UsageError: if it has fewer or more numbers, or one that is not positive.
    """
    parts, most = text.split("x"), most or count
    if not (count <= len(parts) <= most and all(part.isdecimal() and int(part) for part in parts)):
        example = "x".join(["32", "56", "2048"][:count])
        counts = f"{count}" if most == count else f"{count} to {most}"
        raise UsageError(f"{flag}={text}: must be {counts} positive numbers, such as {example}")
    return list(map(int, parts))
