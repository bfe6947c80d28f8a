"""The metadata of an exported model: what a program needs to classify images with it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from repvgg_jax.data.imagenet import IMAGENET_MEAN, IMAGENET_STD
from repvgg_jax.errors import UsageError, one_line, reraise
from repvgg_jax.version import __version__, git_commit

if TYPE_CHECKING:
    from repvgg_jax.nets import Net

LICENSE = "Apache-2.0"
TASK = "classify"
FUSED, TRAIN_FORM = "fused", "train form"


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The metadata of an exported model.

    An image is prepared by resizing its shorter side to `image_size / crop_pct` pixels, cropping
    the central square of `image_size` pixels, and, unless `preprocess` is True, normalizing it to
    `(pixels / 255 - mean) / std`.

    Attributes:
      names: a name for each logit, in order; None if unknown.
      mean: mean of each channel, on a scale from 0 to 1.
      std: standard deviation of each channel, on a scale from 0 to 1.
      image_size: side of the square image that the model takes, in pixels.
      crop_pct: `image_size` as a fraction of the shorter side of the resized image.
      interpolation: interpolation of the resize.
      preprocess: True if the model takes uint8 pixels and normalizes them.
      task: kind of model.
      model: description of the model in a line.
      form: "fused" or "train form".
      license: license of the model's code.
      version: version of repvgg_jax.
      commit: git commit of repvgg_jax, with "-dirty" if its files have changes; None if unknown.
      checkpoint_sha256: checksum of the exported variables; None if unknown.
      fusion_error: largest relative error of fusion, of any block or of the logits; None if it was
        not verified.
      export_error: relative error of the logits of the file; None until it was verified.
    """

    names: tuple[str, ...] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    image_size: int = 224
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    preprocess: bool = False
    task: str = TASK
    model: str = ""
    form: str = FUSED
    license: str = LICENSE
    version: str = __version__
    commit: str | None = None
    checkpoint_sha256: str | None = None
    fusion_error: float | None = None
    export_error: float | None = None

    def of_net(self, net: Net) -> Self:
        """Returns a copy with the net's form, a description if there is none, and the commit."""
        form = FUSED if net.is_fused else TRAIN_FORM
        model = self.model or f"{type(net).__name__}, {net.num_classes} classes"
        return dataclasses.replace(self, form=form, model=model, commit=self.commit or _commit())

    def check(self, where: str) -> None:
        """Raises UsageError unless `from_strings` will read the metadata."""

        def failed(error: Exception) -> UsageError:
            return UsageError(f"{where}: invalid metadata: {one_line(error)}")

        with reraise((TypeError, ValueError), failed):  # of values that JSON does not have
            strings = self.to_strings()
        self.from_strings(strings, where)

    def to_strings(self) -> dict[str, str]:
        """Returns the metadata as key -> string, without unknown values.

        The keys are those of the ONNX specification for images, those of ultralytics and timm, and
        the names of the remaining attributes. Values other than strings are JSON, so that Python's
        `ast.literal_eval` reads numbers, lists and names too.

        Example:
          >>> strings = Metadata(names=("cat", "dog"), image_size=32).to_strings()
          >>> strings["names"], strings["imgsz"], strings["Image.BitmapPixelFormat"]
          ('{"0": "cat", "1": "dog"}', '[32, 32]', 'Rgb8')
        """
        values = dataclasses.asdict(self)
        names, size = values.pop("names"), values.pop("image_size")
        values["imgsz"] = [size, size]
        if names is not None:
            values["names"] = {str(index): name for index, name in enumerate(names)}
        texts = {key: _text(value) for key, value in values.items() if value is not None}
        return texts | {
            "Image.BitmapPixelFormat": "Rgb8",
            "Image.ColorSpaceGamma": "SRGB",
            # The range before normalization; the specification has no key for mean and std.
            "Image.NominalPixelRange": (
                "NominalRange_0_255" if self.preprocess else "Normalized_0_1"
            ),
        }

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], where: str) -> Self:
        """Returns the metadata that `to_strings` wrote; `where` names the file in messages.

        Raises:
          UsageError: if a key is missing, or its value cannot be used.
        """
        missing = [key for key in _REQUIRED if key not in strings]
        if missing:
            raise UsageError(
                f"{where} has no metadata {', '.join(missing)}; --mode=export writes files with it"
            )
        values = {}
        for key, parse in _PARSERS.items():
            if key not in strings:
                continue
            try:
                values[key] = parse(strings[key])
            except _INVALID as error:
                value = one_line(ValueError(strings[key]), 60)
                raise UsageError(
                    f"{where}: invalid metadata {key}={value}: {one_line(error)}"
                ) from None
        values["image_size"] = values.pop("imgsz")
        return cls(**values)


def _commit() -> str | None:
    """Returns the commit of the code, marked as `git describe --dirty` does."""
    found = git_commit()
    return f"{found['commit']}-dirty" if found["dirty"] else found["commit"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _names(text: str) -> tuple[str, ...]:
    named = json.loads(text)
    names = tuple(named[str(index)] for index in range(len(named)) if str(index) in named)
    if len(names) != len(named) or not all(isinstance(name, str) for name in names):
        raise ValueError('must be {"0": "name of the first class", ...}')
    "".join(names).encode()  # raises ValueError if one is not Unicode
    return names


def _size(text: str) -> int:
    height, width = json.loads(text)
    if type(height) is not int or height != width or not 0 < height < 1 << 16:
        raise ValueError("must be [side, side] in pixels")
    return height


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("must be finite")
    return number


def _channels(text: str) -> tuple[float, float, float]:
    red, green, blue = (_number(value) for value in json.loads(text))
    return red, green, blue


def _mean(text: str) -> tuple[float, float, float]:
    channels = _channels(text)
    if min(channels) < 0 or max(channels) > 1:
        raise ValueError("must be from 0 to 1, the scale of the pixels")
    return channels


def _std(text: str) -> tuple[float, float, float]:
    channels = _channels(text)
    if min(channels) <= 0 or max(channels) > 1:
        raise ValueError("must be positive and at most 1, the scale of the pixels")
    return channels


def _fraction(text: str) -> float:
    number = _number(text)
    if not 0.01 <= number <= 1:
        raise ValueError("must be from 0.01 to 1")
    return number


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return text

    return parse


_PARSERS: dict[str, Callable[[str], Any]] = {
    "names": _names,
    "mean": _mean,
    "std": _std,
    "imgsz": _size,
    "crop_pct": _fraction,
    "interpolation": _one_of("bilinear"),
    "preprocess": lambda text: _one_of("true", "false")(text) == "true",
    "task": _one_of(TASK),
    "form": _one_of(FUSED, TRAIN_FORM),
    "model": str,
    "license": str,
    "version": str,
    "commit": str,
    "checkpoint_sha256": str,
    "fusion_error": float,
    "export_error": float,
}
_INVALID = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)
_REQUIRED = ("imgsz", "mean", "std", "crop_pct", "interpolation", "preprocess", "task", "form")
