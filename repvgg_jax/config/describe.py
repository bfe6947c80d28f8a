"""Names of the model and of the data that a config describes."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from repvgg_jax.config.fields import FIELDS, Field
from repvgg_jax.nets import create

_SHAPE = ("depths", "widths", "strides", "depth", "width")


def model_name(config: ConfigDict) -> str:
    """Returns the model's name, and what the config changes in it.

    A model whose depth or width is changed is named by its architecture: `repvgg_a0`, `repvgg_a0
    (block acb)`, but `RepVGG (depths 1-2-3-1, widths 16-32-64-128)`.
    """
    own = create(config.model.name)
    defaults = dict(own.block_options) | {"dtype": "float32"}
    changed = {}
    for field in dict.fromkeys((*_SHAPE, *config.model)):
        value = config.model[field]
        value = tuple(value) if isinstance(value, list) else value
        known = field in ("name", "num_classes") or value is None
        if known or not FIELDS.get(f"model.{field}", Field()).changes_result:
            continue
        if value != defaults.get(field, getattr(own, field, None)):
            changed[field] = value
    resized = changed.keys() & {*_SHAPE} - {"strides"}
    name = type(own).__name__ if resized else config.model.name
    parts = ", ".join(_text(field, value) for field, value in changed.items())
    return f"{name} ({parts})" if parts else name


def data_name(data: Mapping[str, Any] | ConfigDict) -> str:
    """Returns the name of the data that `config.data` selects; `data.name` is for TFDS only."""
    if data["source"] == "folder":
        return data["data_dir"] or "class folders"
    return data["name"] if data["source"] == "tfds" else data["source"]


def _text(field: str, value: Any) -> str:
    text = ("-".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)
    return text if field == "dtype" else f"{field} {text}"
