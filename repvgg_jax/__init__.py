"""Re-parameterized convolutional networks: train with many branches, deploy one convolution each.

All functions work on a pair `(net, variables)`: a Flax module without arrays, and its
`{"params", "batch_stats"}`. `fuse` maps the pair of a train form to the pair of its fused form.

>>> import jax
>>> net = create("repvgg_a0", num_classes=10)
>>> variables = randomize(init(net, jax.random.key(0), image_size=32), jax.random.key(1))
>>> fused_net, fused_variables = fuse(net, variables)
>>> fused_net.is_fused
True
"""

from typing import TYPE_CHECKING, Any

from repvgg_jax.config.classes import class_names
from repvgg_jax.errors import UsageError
from repvgg_jax.fusion.fuse import fuse
from repvgg_jax.fusion.insert_bn import insert_bn
from repvgg_jax.fusion.reestimate import reestimate_batch_stats
from repvgg_jax.fusion.verify import FusionReport, verify
from repvgg_jax.nets import create, init, list_models, randomize
from repvgg_jax.version import __version__

if TYPE_CHECKING:
    from repvgg_jax.checkpoint.load import load

__all__ = [
    "FusionReport",
    "UsageError",
    "__version__",
    "class_names",
    "create",
    "fuse",
    "init",
    "insert_bn",
    "list_models",
    "load",
    "randomize",
    "reestimate_batch_stats",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports `load` at its first use: importing Orbax and Optax is slow."""
    if name == "load":
        from repvgg_jax.checkpoint.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the names in the module, including `load` before its first use."""
    return sorted({*globals(), *__all__})
