"""Architectures by name, one a file."""

from repvgg_jax.nets._registry import NETS, create, list_models
from repvgg_jax.nets._variables import (
    Averaged,
    Variables,
    abstract_variables,
    as_average,
    check_names,
    check_pair,
    init,
)

__all__ = [
    "NETS",
    "Averaged",
    "Variables",
    "abstract_variables",
    "as_average",
    "check_names",
    "check_pair",
    "create",
    "init",
    "list_models",
]
