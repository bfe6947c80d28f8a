"""Reading and writing of PyTorch weight files, and the checkpoints released by RepVGG's authors."""

import argparse
import importlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_jax.errors import UsageError, one_line, reraise
from repvgg_jax.interop.pytorch_checkpoint import state_dicts
from repvgg_jax.runtime.files import local_path

PICKLES, SAFE = (".pth", ".pt"), ".safetensors"  # the extensions for writing
LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # in the first bytes that torch.save wrote before 1.6
OTHER_CONTENTS = (
    (rb"version https://git-lfs", "is a Git LFS pointer; get the weights with: git lfs pull"),
    (
        rb"\s*<(!doctype|html|head|\?xml)",
        "is a web page, so the download failed; open its address in a browser",
    ),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|(?s:.{257})ustar", "is an archive; unpack it"),
    (
        rb"\x80[\x02-\x05]",
        "is a pickle that torch.save did not write; if you trust the file, unpickle it, and save "
        "its weights with torch.save(state_dict, path)",
    ),
)


def read_torch(path: str | Path) -> dict[str, Any]:
    """Returns the contents of a file of PyTorch weights, for `from_torch`.

    The file may have any extension: its content tells whether torch.save or safetensors wrote it.
    Pickles are read with `weights_only=True`, which loads tensors and plain containers only. The
    name of an entry can follow the path, such as `best.pth:state_dict_ema`, to read one of several
    models from a checkpoint.

    Raises:
      UsageError: if the file is missing or damaged, has another format or contains code, if it
        lacks the entry, or if the package that reads it is not installed.
    """
    path, name = _path_and_entry(path)
    with reraise(OSError, lambda error: UsageError(f"{path}: {one_line(error)}")):
        kind = _kind(path)
    package = _package(path, kind)
    try:
        if kind == "safetensors":
            contents = package.load_file(path)
        else:
            # Training scripts keep their arguments in a Namespace, which only holds values.
            with package.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
                contents = package.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # for a damaged file, PyTorch raises errors of many kinds
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UsageError(
                f"{path} was not read, because unpickling it would run {code[1]}; if you trust the "
                "file, read it with torch.load(path, weights_only=False) and save only its weights "
                "with torch.save(state_dict, path)"
            ) from None
        detail = str(error).rpartition("WeightsUnpickler error:")[2]  # without advice to run code
        cause = " ".join(detail.split())[:100] or type(error).__name__
        raise UsageError(f"{path}: damaged, or not a {kind} file ({cause})") from error
    if name is None:
        return contents
    found = state_dicts(contents)
    if name not in found:
        there = f"it has {', '.join(found)}" if found else "nor in any other"
        raise UsageError(f"{path} has no convolution kernels in an entry {name!r}; {there}")
    return dict(found[name])


def save_torch(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes the result of `to_torch` as `.pth`, `.pt` or `.safetensors`.

    Raises:
      UsageError: if the extension is not one of these, the folder does not exist, or the package
        that writes the file is not installed.
    """
    path = local_path(path)
    ending = path.suffix.lower()
    if ending not in (*PICKLES, SAFE):
        raise UsageError(f"{path}: the extension must be {', '.join(PICKLES)} or {SAFE}")
    kind = "safetensors" if ending == SAFE else "PyTorch"
    package = _package(path, kind)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    arrays = {name: np.asarray(array, order="C") for name, array in state_dict.items()}
    # The packages raise OSError, RuntimeError or types of their own.
    with reraise(Exception, lambda error: UsageError(f"cannot write {path} ({one_line(error)})")):
        if kind == "safetensors":
            # PyTorch's readers check the format in the metadata.
            package.save_file(arrays, path, metadata={"format": "pt"})
        else:
            package.save({name: package.from_numpy(array) for name, array in arrays.items()}, path)


def _path_and_entry(path: str | Path) -> tuple[Path, str | None]:
    """Splits `file:entry`, unless there is a file whose own name has the colon."""
    whole = local_path(path)
    file, _, name = str(whole).rpartition(":")
    if name and not whole.exists() and Path(file).is_file():
        return Path(file), name
    return whole, None


def _kind(path: Path) -> str:
    """Returns the name of the file format, from the first bytes.

    Raises:
      UsageError: if the file is missing, or of a format that has no weights or is not supported.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give a file of weights in it")
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise UsageError(f"{path} is empty; download or save it again")
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if LEGACY_MAGIC in start[:32]:
        return "PyTorch"
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header < path.stat().st_size:
        return "safetensors"
    for pattern, problem in OTHER_CONTENTS:
        if re.match(pattern, start, re.IGNORECASE):
            raise UsageError(f"{path} {problem}")
    raise UsageError(f"{path}: damaged, or not a file of weights; it starts with {start[:16]!r}")


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        message = f"{path}: damaged, or not a PyTorch file ({one_line(error, 100)})"
        raise UsageError(message) from error
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files:
        raise UsageError(
            f"{path} is a TorchScript program; if you trust it, save its weights: "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pth')"
        )
    if "data.pkl" not in files:
        raise UsageError(
            f"{path} is a zip archive that torch.save did not write, with "
            f"{', '.join(names[:3])} in it; unpack it if that is a file of weights"
        )
    return "PyTorch"


def _package(path: Path, kind: str) -> Any:
    """Returns the package that reads and writes the file format."""
    try:
        return importlib.import_module("safetensors.numpy" if kind == "safetensors" else "torch")
    except ImportError:
        needed = "safetensors: pip install safetensors"
        if kind == "PyTorch":
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
