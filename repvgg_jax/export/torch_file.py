"""Export as a PyTorch state dict, with a module that loads it and imports PyTorch only."""

import json
import keyword
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_jax.errors import UsageError, one_line, reraise
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.onnx_graph import INPUT, OUTPUT, make_graph
from repvgg_jax.export.torch_operators import OPERATORS
from repvgg_jax.export.torch_source import Writer
from repvgg_jax.export.verification import Logits, import_package, prepare
from repvgg_jax.interop.pytorch_files import PICKLES, save_torch
from repvgg_jax.nets import Net, Variables

_AUTHOR = "written by repvgg_jax"
_MODULE = '''\
"""{model}, {form}, in PyTorch; {author} {version}.

  from {stem} import load
  model = load()  # reads {file} beside this file
  logits = model(images)  # {images}
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

METADATA = {metadata}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
{layers}

    def forward(self, x):
{steps}
        return {result}


def load(path=Path(__file__).with_suffix("{ending}"), map_location="cpu"):
    """Returns the model in evaluation mode, with the weights of a file."""
    model = Model()
    model.load_state_dict(torch.load(path, map_location, weights_only=True))
    return model.eval()
'''


def export_torch(
    net: Net,
    variables: Variables,
    path: str | Path,
    *,
    metadata: Metadata | None = None,
    images: Any = None,
    allow_train_form: bool = False,
) -> Metadata:
    """Writes a PyTorch state dict, and beside it `<name>.py` with the module that loads it.

    The module imports torch only. It is made from the net's own operations, so that it exists for
    nets of any widths, depths, strides and blocks, unlike the models whose names `to_torch` has.
    Images are [batch, 3, height, width].

    Args:
      net: the fused form.
      variables: its variables.
      path: file to write, such as "model.pth"; its name must be one of a Python module.
      metadata: class names, normalization and size of the images; by default no names, and
        ImageNet's normalization and 224 pixels. If its `preprocess` is True, the module takes
        uint8 images, and normalizes them.
      images: at least four images, uint8 [count, side, side, 3]; the first four verify the file.
        Random if None.
      allow_train_form: True to export a net that is not fused.

    Returns:
      The metadata in the module, with the relative error of its logits.

    Raises:
      UsageError: if an argument is invalid, the net is in train form or has an operation that is
        not supported, writing fails, or PyTorch is missing.
      RunError: if the module does not compute what the net computes.

    Example:
      >>> net, variables = load("runs/b1", fused=True)  # doctest: +SKIP
      >>> torch(net, variables, "b1.pth").export_error < 1e-5  # doctest: +SKIP
      True
    """
    torch = import_package("torch", "torch")
    source, path = prepare(net, variables, path, metadata, images, allow_train_form)
    if path.suffix.lower() not in PICKLES or not _is_importable(path.stem):
        raise UsageError(
            f"{path}: give a name such as model{PICKLES[0]}, whose module model.py can be imported"
        )
    module = path.with_suffix(".py")
    with reraise((OSError, ValueError), lambda error: UsageError(f"{module}: {one_line(error)}")):
        if module.exists() and _AUTHOR not in module.read_text(encoding="utf-8"):
            raise UsageError(
                f"{module} is a module of your own, which the export would replace; give another "
                "name"
            )
    writer = Writer(make_graph(source, dynamic_size=False), OPERATORS, INPUT, OUTPUT)

    def save(draft: Path, metadata: Metadata) -> None:
        save_torch(draft, writer.state)
        draft.with_suffix(".py").write_text(_code(writer, metadata, path), encoding="utf-8")

    return source.write(path, save, partial(_logits, torch))


def _is_importable(name: str) -> bool:
    """Returns True for names of modules that hide no module which PyTorch needs."""
    taken = {"torch", *sys.stdlib_module_names}
    return name.isidentifier() and not keyword.iskeyword(name) and name not in taken


def _code(writer: Writer, metadata: Metadata, path: Path) -> str:
    indent = " " * 8
    size = metadata.image_size
    images = f"float32 [batch, 3, {size}, {size}], RGB, (pixels / 255 - mean) / std"
    if metadata.preprocess:
        images = f"uint8 [batch, 3, {size}, {size}], RGB"
    return _MODULE.format(
        model=metadata.model.replace("\\", "/").replace('"', "'"),  # of a docstring
        form=metadata.form,
        author=_AUTHOR,
        version=metadata.version,
        stem=path.stem,
        file=path.name,
        ending=path.suffix,
        images=images,
        metadata=json.dumps(metadata.to_strings(), indent=4, ensure_ascii=False),
        layers="\n".join(indent + line for line in writer.layers),
        steps="\n".join(f"{indent}{target} = {code}" for target, code in writer.steps),
        result=writer.result,
    )


def _logits(torch: Any, path: Path) -> Logits:
    # Importing the module would write `__pycache__` into the folder of the files to be kept.
    model = runpy.run_path(str(path.with_suffix(".py")))["load"]()

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()

    return logits
