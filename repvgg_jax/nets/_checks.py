"""Checks of the fields of nets; the messages name the field."""

from typing import Any

from repvgg_jax.errors import UsageError


def check_positive(field: str, value: Any) -> None:
    """Raises UsageError unless the value is None or a positive integer."""
    if value is not None and (not isinstance(value, int) or value < 1):
        raise UsageError(f"{field}={value!r}: must be a positive integer")


def check_stages(**fields: Any) -> None:
    """Raises UsageError unless the fields are tuples of positive integers of the same length."""
    for field, value in fields.items():
        if not isinstance(value, tuple | list) or not value:
            raise UsageError(f"{field}={value!r}: must be a tuple with one entry per stage")
        if not all(isinstance(number, int) and number > 0 for number in value):
            raise UsageError(f"{field}={value!r}: must be positive integers")
    if len({len(value) for value in fields.values()}) > 1:
        found = _listed([f"{field} {value}" for field, value in fields.items()])
        counts = _listed([str(len(value)) for value in fields.values()])
        raise UsageError(f"{found} must each have one entry per stage, but have {counts}")


def _listed(names: list[str]) -> str:
    """Returns at least two names as "a and b", or "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}"


def check_stem(stem: Any) -> None:
    """Raises UsageError unless the stem is a convolution's side and stride and a pool's stride."""
    whole = isinstance(stem, tuple | list) and all(isinstance(n, int) and n > 0 for n in stem)
    if not whole or len(stem) != 3:
        raise UsageError(
            f"stem={stem!r}: must be three positive integers: side and stride of the first "
            "convolution, and stride of the max pooling after it (1 for none); (7, 2, 2) is a 7x7 "
            "convolution of stride 2 with pooling, (3, 1, 1) suits images of 32x32 pixels"
        )


def check_probability(field: str, value: Any) -> None:
    """Raises UsageError unless the value is at least 0 and less than 1."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise UsageError(f"{field}={value!r}: must be at least 0 and less than 1")
