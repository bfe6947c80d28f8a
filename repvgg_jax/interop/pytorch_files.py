"""Reading and writing of PyTorch weight files, and the checkpoints released by RepVGG's authors."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_jax.errors import UsageError, one_line
from repvgg_jax.runtime.files import local_path

PICKLES, SAFE = (".pth", ".pt"), ".safetensors"


def read_torch(path: str | Path) -> dict[str, Any]:
    """Returns the contents of a `.pth`, `.pt` or `.safetensors` file, for `from_torch`.

    Pickles are read with `weights_only=True`, which loads tensors and plain containers only.

    Raises:
      UsageError: if the file is missing or damaged, has another extension or contains code, or if
        the package that reads it is not installed.
    """
    path = local_path(path)
    package, kind = _package(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        if kind == "safetensors":
            return package.load_file(path)
        return package.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # for a damaged file, PyTorch raises errors of many kinds
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UsageError(
                f"{path} was not read, because unpickling it would run {code[1]}; if you trust the "
                "file, save its weights again: torch.save(model.state_dict(), path)"
            ) from None
        cause = one_line(error, 100)
        raise UsageError(f"{path}: damaged, or not a {kind} file ({cause})") from error


def save_torch(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes the result of `to_torch` as `.pth`, `.pt` or `.safetensors`.

    Raises:
      UsageError: if the extension is not one of these, the folder does not exist, or the package
        that writes the file is not installed.
    """
    path = local_path(path)
    package, kind = _package(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    arrays = {name: np.asarray(array, order="C") for name, array in state_dict.items()}
    if kind == "safetensors":
        # PyTorch's readers check the format in the metadata.
        package.save_file(arrays, path, metadata={"format": "pt"})
    else:
        package.save({name: package.from_numpy(array) for name, array in arrays.items()}, path)


def _package(path: Path) -> tuple[Any, str]:
    """Returns the package that reads and writes the file, and the name of the file format."""
    ending = path.suffix.lower()
    if ending not in (*PICKLES, SAFE):
        raise UsageError(f"{path}: the extension must be {', '.join(PICKLES)} or {SAFE}")
    try:
        if ending == SAFE:
            return importlib.import_module("safetensors.numpy"), "safetensors"
        return importlib.import_module("torch"), "PyTorch"
    except ImportError:
        needed = "safetensors: pip install safetensors"
        if ending != SAFE:
            needed = f"PyTorch: pip install torch (or use a {SAFE} file)"
        raise UsageError(f"{path} requires {needed}") from None


@dataclass(frozen=True)
class Released:
    """A checkpoint released by RepVGG's authors, in the train form and the official layout.

    Images are normalized with the mean and standard deviation of ImageNet's pixels.

    Attributes:
      model: name of the model, for `create`.
      file: name of the file.
      top1: published ImageNet top-1 accuracy in percent, with one center crop of `test_size`.
      source: publication of the accuracy.
      resize: shorter side before the crop, in pixels.
      test_size: side of the crop, in pixels.
    """

    model: str
    file: str
    top1: float
    source: str
    resize: int = 256
    test_size: int = 224


def _released(ending: str, source: str, accuracies: Mapping[str, float]) -> list[Released]:
    return [
        Released(f"repvgg_{name.lower()}", f"RepVGG-{name}{ending}", top1, source)
        for name, top1 in accuracies.items()
    ]


# B2g2 and B3g2 are omitted, since the paper does not report their accuracy.
_TABLE_4 = dict(
    A0=72.41, A1=74.46, A2=76.48, B0=75.14, B1=78.37, B1g2=77.78, B1g4=77.58, B2=78.78, B2g4=78.50
)
_TABLE_5 = dict(B2g4=79.38, B3=80.52, B3g4=80.21)
_AUTHORS = "github.com/DingXiaoH/RepVGG"
_D2SE = "RepVGG-D2se-200epochs-train.pth"
_L2PSE = "RepVGGplus-L2pse-train256-acc84.06.pth"
_RECORDS = [
    *_released("-train.pth", "arXiv 2101.03697, Table 4", _TABLE_4),
    *_released("-200epochs-train.pth", "arXiv 2101.03697, Table 5", _TABLE_5),
    Released("repvgg_d2se", _D2SE, 83.55, _AUTHORS, resize=320, test_size=320),
    Released("repvgg_plus_l2pse", _L2PSE, 84.06, _AUTHORS, resize=320, test_size=320),
]
RELEASED: dict[str, Released] = {record.file: record for record in _RECORDS}
