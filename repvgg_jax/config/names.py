"""The fields that a misspelled name, or a name of another program, may stand for."""

import difflib
from collections.abc import Iterable

from ml_collections import ConfigDict

from repvgg_jax.config.fields import flat, to_json

# Fields by the names that other programs have for them.
_ALIASES = {
    "arch": "model.name",
    "bs": "train.batch_size",
    "data": "data.data_dir",
    "dataset": "data.name",
    "ema": "optim.ema_decay",
    "lr": "optim.learning_rate",
    "model": "model.name",
    "num_workers": "data.workers",
    "pretrained": "init_from",
    "wd": "optim.weight_decay",
}


def fields_named(known: Iterable[str], name: str) -> list[str]:
    """Returns the field that the last part of `name` is an alias of, or all with this last part."""
    last = name.rpartition(".")[2]
    if alias := _ALIASES.get(last):
        return [field for field in known if field == alias]
    same = [field for field in known if field.rpartition(".")[2] == last]
    return [name] if name in same else same


def nearest_fields(known: Iterable[str], name: str) -> list[str]:
    """Returns up to three fields that `name` may stand for, the best first."""
    if same := fields_named(known, name):
        return difflib.get_close_matches(name, same, n=3, cutoff=0)
    if "." in name:
        similar = {k: difflib.SequenceMatcher(None, name, k).ratio() for k in known}
        best = max(0.4, max(similar.values()) - 0.15)  # no others beside a nearly equal one
        return difflib.get_close_matches(name, known, n=3, cutoff=best)
    last_parts = {field.rpartition(".")[2]: field for field in known}
    return [last_parts[part] for part in difflib.get_close_matches(name, last_parts, n=3)]


def unknown_field(config: ConfigDict, name: str) -> str | None:
    """Returns a message with the nearest field names, or None if the config has this field."""
    known = dict(flat(to_json(config)))
    if name in known:
        return None
    if inside := [field for field in known if field.startswith(f"{name}.")]:
        return f"--config.{name} is a section; set one of its fields, such as --config.{inside[0]}"
    close = nearest_fields(known, name)
    hint = f"did you mean {' or '.join(close)}?" if close else "configs/default.py lists them"
    return f"--config.{name}: no such field; {hint}"
