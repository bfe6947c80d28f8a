"""Architectures, one per file. Modules whose names start with an underscore are shared."""

from repvgg_jax.nets._auxiliary import AUXILIARY, AUXILIARY_HEAD
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._call_errors import check_images, smallest_side
from repvgg_jax.nets._registry import NETS, check_model, create, list_models
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo, units_of
from repvgg_jax.nets._variables import (
    Averaged,
    Variables,
    abstract,
    as_average,
    check_arguments,
    check_names,
    check_pair,
    init,
    randomize,
)
