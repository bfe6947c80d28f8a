"""What several commands share."""

from __future__ import annotations

from ml_collections import ConfigDict

from repvgg_jax.runtime.processes import primary


def model_name(config: ConfigDict) -> str:
    return ", block ".join(filter(None, (config.model.name, config.model.block)))


def say(text: str) -> None:
    if primary():
        print(text)
