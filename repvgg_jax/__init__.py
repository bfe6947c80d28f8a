"""Re-parameterized convolutional networks: train with many branches, deploy a plain net.

The one currency is a pair `(net, variables)`: a Flax Module without arrays and its
`{"params", "batch_stats"}`. `fuse` maps such a pair to another such pair.
"""

from typing import TYPE_CHECKING, Any

from repvgg_jax.errors import UsageError
from repvgg_jax.fusion.fuse import fuse
from repvgg_jax.fusion.insert_bn import insert_bn
from repvgg_jax.fusion.reestimate import reestimate_batch_stats
from repvgg_jax.fusion.verify import FusionReport, verify
from repvgg_jax.nets import create, init, list_models, randomize

if TYPE_CHECKING:
    from repvgg_jax.checkpoint.load import load

__all__ = [
    "FusionReport",
    "UsageError",
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
    """`load` at its first use: with it come Orbax and Optax, a third of an import's time."""
    if name == "load":
        from repvgg_jax.checkpoint.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """With `load`, used or not."""
    return sorted({*globals(), *__all__})
