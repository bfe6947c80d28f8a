"""Files of exported models, which other tools load.

Each function takes `(net, variables, path, **options)`, reads the file back with the tool that it
is for, and compares its logits with the net's: `repvgg_jax.export.onnx(net, variables, "a.onnx")`.
"""

import importlib
from typing import Any

__all__ = ["onnx", "safetensors", "stablehlo", "tflite", "torch"]


def __getattr__(name: str) -> Any:
    """Imports the function of a format at its first use: `export_onnx` of `onnx_file` as `onnx`."""
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{name}_file"), f"export_{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
