"""Helpers that several commands share."""

from __future__ import annotations

from ml_collections import ConfigDict

from repvgg_jax.runtime.processes import primary


def model_name(config: ConfigDict) -> str:
    """Returns the model's name, with its block if the config sets one: `repvgg_a0, block acb`."""
    return ", block ".join(filter(None, (config.model.name, config.model.block)))


def say(text: str) -> None:
    """Prints a text once, from process 0."""
    if primary():
        print(text)
