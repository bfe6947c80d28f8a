"""Files of PyTorch weights, and the checkpoints that RepVGG's authors released."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_jax.errors import UsageError, one_line

PICKLES, SAFE = (".pth", ".pt"), ".safetensors"


def read_torch(path: str | Path) -> dict[str, Any]:
    """Returns the contents of a `.pth`, `.pt` or `.safetensors` file, as `from_torch` takes them.

    A pickle is read with `weights_only=True`: tensors and plain containers, but no code.

    Raises:
      UsageError: for a file that is missing or damaged, has another ending or contains code, and
        if the package that reads it is not installed.
    """
    path = Path(path)
    if _ending(path) == SAFE:
        numpy_io = _safetensors(path)
        _check_exists(path)
        try:
            return numpy_io.load_file(path)
        except Exception as error:  # the package's own class cannot be imported at module level
            raise UsageError(
                f"{path}: damaged, or not a safetensors file ({one_line(error, 100)})"
            ) from error
    torch = _torch(path)
    _check_exists(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UsageError(
                f"{path} was not read: it would run {code[1]}, and only weights are "
                "unpickled; if you trust it, save it again: torch.save(model.state_dict(), path)"
            ) from None
        raise UsageError(
            f"{path}: damaged, or not a PyTorch file ({one_line(error, 100)})"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UsageError(
            f"{path}: damaged, or not a PyTorch file ({one_line(error, 100)})"
        ) from None


def save_torch(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes the result of `to_torch` as `.pth`, `.pt` or `.safetensors`.

    Raises:
      UsageError: for another ending or a folder that does not exist, and if the package that
        writes the file is not installed.
    """
    path = Path(path)
    arrays = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in state_dict.items()}
    io = _safetensors(path) if _ending(path) == SAFE else _torch(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    if _ending(path) == SAFE:
        # PyTorch's readers look for the format before they take a file.
        io.save_file(arrays, path, metadata={"format": "pt"})
    else:
        io.save({name: io.from_numpy(array) for name, array in arrays.items()}, path)


def _ending(path: Path) -> str:
    if path.suffix.lower() not in (*PICKLES, SAFE):
        raise UsageError(f"{path}: a file of weights must end in {', '.join(PICKLES)} or {SAFE}")
    return path.suffix.lower()


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UsageError(
            f"{path} needs PyTorch: pip install torch (or make the file {path.stem}{SAFE})"
        ) from None
    return torch


def _safetensors(path: Path) -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise UsageError(f"{path} needs safetensors: pip install safetensors") from None
    return safetensors.numpy


@dataclasses.dataclass(frozen=True)
class Released:
    """A checkpoint released by RepVGG's authors, in the train form and the official layout.

    Attributes:
      model: name of the model, for `create`.
      file: name of the file.
      top1: published ImageNet accuracy in percent, of one center crop at `test_size`.
      source: source of that figure.
      resize: shorter side before the crop, in pixels.
      test_size: side of the crop, in pixels.
      mean: mean of the RGB channels that images in 0..1 are normalized with.
      std: standard deviation of these channels.
    """

    model: str
    file: str
    top1: float
    source: str
    resize: int = 256
    test_size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def _of_the_paper(table: int, ending: str, accuracies: Mapping[str, float]) -> list[Released]:
    source = f"arXiv 2101.03697, Table {table}"
    return [
        Released(f"repvgg_{name.lower()}", f"RepVGG-{name}{ending}", top1, source)
        for name, top1 in accuracies.items()
    ]


# B2g2 and B3g2 are missing: the paper gives no accuracy for them.
_RECORDS = [
    *_of_the_paper(
        4,
        "-train.pth",
        {
            "A0": 72.41,
            "A1": 74.46,
            "A2": 76.48,
            "B0": 75.14,
            "B1": 78.37,
            "B1g2": 77.78,
            "B1g4": 77.58,
            "B2": 78.78,
            "B2g4": 78.50,
        },
    ),
    *_of_the_paper(5, "-200epochs-train.pth", {"B2g4": 79.38, "B3": 80.52, "B3g4": 80.21}),
    Released(
        "repvgg_d2se",
        "RepVGG-D2se-200epochs-train.pth",
        83.55,
        "github.com/DingXiaoH/RepVGG",
        resize=320,
        test_size=320,
    ),
    Released(
        "repvgg_plus_l2pse",
        "RepVGGplus-L2pse-train256-acc84.06.pth",
        84.06,
        "github.com/DingXiaoH/RepVGG",
        resize=320,
        test_size=320,
    ),
]
RELEASED: dict[str, Released] = {record.file: record for record in _RECORDS}
