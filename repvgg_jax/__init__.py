"""Re-parameterized convolutional networks: train with many branches, deploy one convolution each.

All functions work on a pair `(net, variables)`: a Flax module without arrays, and its
`{"params", "batch_stats"}`. `fuse` maps the pair of a train form to the pair of its fused form.

>>> import jax
>>> import repvgg_jax as rj
>>> net = rj.create("repvgg_a0", num_classes=10)
>>> variables = rj.randomize(rj.init(net, jax.random.key(0), image_size=32), jax.random.key(1))
>>> fused_net, fused_variables = rj.fuse(net, variables)
>>> fused_net.is_fused
True
"""

import importlib
from typing import TYPE_CHECKING, Any

from repvgg_jax import export
from repvgg_jax.config.classes import class_names
from repvgg_jax.errors import UsageError
from repvgg_jax.version import __version__

if TYPE_CHECKING:
    from repvgg_jax.checkpoint.load import load
    from repvgg_jax.fusion.fuse import fuse
    from repvgg_jax.fusion.insert_bn import insert_bn
    from repvgg_jax.fusion.reestimate import reestimate_batch_stats
    from repvgg_jax.fusion.verify import FusionReport, verify
    from repvgg_jax.nets import create, init, list_models, randomize
    from repvgg_jax.training.prediction import predict, preprocess

__all__ = [
    "FusionReport",
    "UsageError",
    "__version__",
    "class_names",
    "create",
    "export",
    "fuse",
    "init",
    "insert_bn",
    "list_models",
    "load",
    "predict",
    "preprocess",
    "randomize",
    "reestimate_batch_stats",
    "verify",
]


# Imported at their first use: JAX, Orbax and Optax take seconds, and a server of an ONNX file needs
# none of them.
_LAZY = {
    "FusionReport": "repvgg_jax.fusion.verify",
    "create": "repvgg_jax.nets",
    "fuse": "repvgg_jax.fusion.fuse",
    "init": "repvgg_jax.nets",
    "insert_bn": "repvgg_jax.fusion.insert_bn",
    "list_models": "repvgg_jax.nets",
    "load": "repvgg_jax.checkpoint.load",
    "predict": "repvgg_jax.training.prediction",
    "preprocess": "repvgg_jax.training.prediction",
    "randomize": "repvgg_jax.nets",
    "reestimate_batch_stats": "repvgg_jax.fusion.reestimate",
    "verify": "repvgg_jax.fusion.verify",
}


def __getattr__(name: str) -> Any:
    """Imports the functions in `_LAZY` at their first use."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the names in the module, including those in `_LAZY` before their first use."""
    return sorted({*globals(), *__all__})
