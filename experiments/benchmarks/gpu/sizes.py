"""The sizes of the benchmark of GPUs."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

import repvgg_jax as rj
from experiments.benchmarks.flags import flag_field
from experiments.sweeps.expand import set_field
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import Net
from repvgg_jax.runtime.files import parse_json


@dataclass(frozen=True)
class Sizes:
    """Holds what is measured and where; the command has a flag for each field with a help text."""

    platform: str = "cpu"  # as from `devices_here`
    model: str = flag_field("repvgg_b1", "name of the net that is compared")
    net: str = flag_field("{}", "more arguments of rj.create, as JSON")
    dtype: str = flag_field("bfloat16", "compute type")
    image_size: int = flag_field(224, "side of the images in pixels")
    batch: int = flag_field(
        256, "images per training step, and per forward pass besides those of one"
    )
    rounds: int = flag_field(10, "measured runs of each training step")
    product: int = flag_field(8192, "side of the square matrices that are multiplied")
    copy: int = flag_field(2**30, "elements that are copied")
    train_images: int = flag_field(50_000, "images that small nets are trained on")
    train_steps: int = flag_field(3000, "training steps of small nets")
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the configs of small nets

    def make_net(self, **overrides: Any) -> Net:
        """Returns the net that is compared, in its train form."""
        given = {name: _as_tuple(value) for name, value in self._net_arguments().items()}
        return rj.create(self.model, **{"dtype": self.dtype, **given, **overrides})

    def _net_arguments(self) -> dict[str, Any]:
        try:
            return parse_json(self.net.encode())
        except ValueError as error:
            raise UsageError(f"--net={self.net}: {error}; give a JSON object") from None

    def make_config(self, name: str) -> ConfigDict:
        """Returns the recipe for GPUs in `configs/<name>.py`, with `fields`."""
        config = importlib.import_module(f"configs.{name}").get_config("full")
        config.optim.learning_rate = 1e-3  # low, since the images are noise
        for path, value in self.fields.items():
            set_field(config, path, value)
        return config


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
