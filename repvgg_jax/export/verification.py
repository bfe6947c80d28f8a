"""Writes exported files, and keeps those that, when read back, compute what the net computes."""

import dataclasses
import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from repvgg_jax.data.images import normalize
from repvgg_jax.errors import RunError, UsageError, described, one_line, reraise
from repvgg_jax.export.metadata import FUSED, Metadata
from repvgg_jax.fusion.certificate import checksum
from repvgg_jax.nets import Net, Variables, check_arguments, check_pair
from repvgg_jax.ops.batch_norm import accumulation_dtype
from repvgg_jax.runtime.compilation import jit_once
from repvgg_jax.runtime.devices import is_exhausted
from repvgg_jax.runtime.files import local_path
from repvgg_jax.runtime.processes import warn_once

# The largest accepted |difference| / max |logits|. A file repeats the net's float32 operations in
# another order, which gives 1e-7 to 1e-5 even for deep nets; a wrong padding, layout or
# normalization gives several percent.
TOLERANCE = 1e-4
BATCHES = (1, 3)
_ALIKE = 10 * TOLERANCE  # relative difference of logits, below which images are alike for the net
_ROUNDING = 1e-7  # relative size of float32's rounding errors
_LARGER = (33, 17)  # pixels added to height and width, to verify a file for images of any size

# Images as the file takes them, [batch, height, width, 3], to logits [batch, classes].
Logits = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Export:
    """A `(net, variables)` pair that is to be exported, and what is known about it.

    Attributes:
      net: the net, which computes in float32 or wider.
      variables: its variables.
      metadata: metadata of the file, without the error of the export.
      pixels: `sum(BATCHES)` images on which the file is verified.
    """

    net: Net
    variables: Variables
    metadata: Metadata
    pixels: UInt8[np.ndarray, "count side side 3"]

    def __call__(self, variables: Variables, images: Array) -> Float[Array, "batch classes"]:
        """Returns the logits of images as the file takes them: the function to export."""
        if self.metadata.preprocess:
            images = normalize(images, self.metadata.mean, self.metadata.std)
        return self.net.apply(variables, images, train=False)

    @property
    def dtype(self) -> Any:
        """Type of the images that the file takes."""
        return jnp.uint8 if self.metadata.preprocess else jnp.float32

    def images(self) -> np.ndarray:
        """Returns the images for the verification as the file takes them."""
        if self.metadata.preprocess:
            return self.pixels
        return np.asarray(normalize(self.pixels, self.metadata.mean, self.metadata.std))

    def write(
        self, path: Path, save: Callable[[Path, Metadata], None], load: Callable[[Path], Logits]
    ) -> Metadata:
        """Writes a file, reads it back, and keeps it if its logits are the net's.

        Args:
          path: path of the file, which is replaced only by a verified one.
          save: function that writes the file, and any files beside it, with the metadata.
          load: function that reads the file with the tool that it is for.

        Returns:
          The metadata with the error of the export, as written to the file.

        Raises:
          UsageError: if the file cannot be written there.
          RunError: if the tool cannot run it, or the logits differ by more than `TOLERANCE`.
        """

        def failed(error: Exception) -> UsageError:
            return UsageError(f"{path} cannot be written ({one_line(error)})")

        with (
            reraise(OSError, failed),
            tempfile.TemporaryDirectory(dir=path.parent, prefix=".export") as folder,
        ):
            draft = Path(folder) / path.name
            save(draft, self.metadata)
            error = self.error(lambda: load(draft), f"{path} was not written")
            metadata = dataclasses.replace(self.metadata, export_error=error)
            save(draft, metadata)
            for file in sorted(draft.parent.iterdir()):
                os.replace(file, path.with_name(file.name))
        return metadata

    def error(self, load: Callable[[], Logits], refused: str) -> float:
        """Returns the error of a file: max |difference| / max |net's logits| over `BATCHES`.

        Args:
          load: function that reads the file and returns its function from images to logits.
          refused: beginning of the message if the file is wrong.

        Raises:
          UsageError: if the net's logits are all zero, or not finite.
          RunError: if the file cannot be run, or the error is larger than `TOLERANCE`.
        """
        images = self.images()
        expected = self._expected(images)
        split = np.cumsum(BATCHES)[:-1]
        batches = zip(np.split(images, split), np.split(expected, split), strict=True)
        try:
            logits = load()
            # np.max, since the result is NaN if any difference is.
            differences = [np.abs(np.asarray(logits(x), np.float64) - y).max() for x, y in batches]
        except Exception as problem:  # each tool has types of its own
            if isinstance(problem, RunError) or is_exhausted(problem):
                raise
            raise RunError(f"{refused}: it cannot be run ({one_line(problem)})") from problem
        error = float(np.max(differences) / np.abs(expected).max())
        if not error <= TOLERANCE:
            raise RunError(
                f"{refused}: its logits differ from the net's by a relative error of {error:.1e}; "
                f"the limit is {TOLERANCE:g}{self._amplification(error)}"
            )
        return error

    def _expected(self, images: np.ndarray) -> np.ndarray:
        """Returns the net's logits, with a warning if they can verify little of a file."""
        expected = self._logits(images)
        largest = np.abs(expected).max()
        if not 0 < largest < np.inf:
            raise UsageError(
                "the logits of the net are all zero, or not finite, so that a file cannot be "
                "verified by them"
            )
        if np.ptp(expected, axis=0).max() < _ALIKE * largest:
            warn_once(
                "the logits of the net are nearly the same for all images, as those of a net that "
                "is not trained, so that they verify little of the file"
            )
        return expected

    def _logits(self, images: np.ndarray) -> np.ndarray:
        # Weights that are constants of the program would be folded, which takes long.
        compiled = jit_once(lambda variables, images: self(variables, images))
        with jax.default_matmul_precision("highest"):
            return np.asarray(compiled(self.variables, images), np.float64)

    def _amplification(self, error: float) -> str:
        """Returns a note if the net itself explains an error, since it amplifies small changes."""
        net = dataclasses.replace(
            self, metadata=dataclasses.replace(self.metadata, preprocess=False)
        )
        images = net.images()
        signs = np.random.default_rng(0).choice([-1, 1], images.shape)
        changed = images * (1 + _ROUNDING * signs).astype(np.float32)
        before, after = net._logits(images), net._logits(changed)
        own = np.abs(after - before).max() / np.abs(before).max()
        if not own > error / 10:
            return ""
        return (
            f"; but the net amplifies rounding errors, as deep nets with random weights do: its "
            f"own logits change by {own:.1e} if its images change by {_ROUNDING:g}"
        )

    def check_larger(self, logits: Logits) -> None:
        """Raises RunError unless the logits of larger images, which are not square, are the net's.

        For files that take images of any size from `image_size` on.
        """
        more = [(0, 0), *((0, pixels) for pixels in _LARGER), (0, 0)]
        larger = dataclasses.replace(self, pixels=np.pad(self.pixels, more, mode="wrap"))
        larger.error(lambda: logits, "the file was refused for larger images")


def prepare(
    net: Net,
    variables: Variables,
    path: str | Path,
    metadata: Metadata | None,
    images: UInt8[Any, "count side side 3"] | None,
    allow_train_form: bool,
) -> tuple[Export, Path]:
    """Returns the pair to export, in float32 or wider, and the path of the file.

    Raises:
      UsageError: if an argument or the metadata are invalid, the folder does not exist, or the net
        is in train form and that is not allowed.
    """
    check_arguments(net, variables, "rj.export")
    check_pair(variables)
    path = local_path(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    net = net.clone(dtype=accumulation_dtype(net.dtype))
    metadata = Metadata() if metadata is None else metadata
    if not isinstance(metadata, Metadata):
        raise UsageError(
            f"metadata={described(metadata)}: give a Metadata of repvgg_jax.export.metadata"
        )
    metadata = metadata.of_net(net)
    if metadata.form != FUSED and not allow_train_form:
        raise UsageError(
            "the net is in train form, which is slower and larger; export rj.fuse(net, variables), "
            "or pass allow_train_form=True for a net that cannot be fused"
        )
    metadata = dataclasses.replace(metadata, checkpoint_sha256=checksum(variables))
    metadata.check(str(path))
    if metadata.names is not None and len(metadata.names) != net.num_classes:
        raise UsageError(
            f"{path}: the metadata name {len(metadata.names)} classes, but the net has "
            f"{net.num_classes} outputs; give one name for each"
        )
    size, count = metadata.image_size, sum(BATCHES)
    if images is None:
        images = random_pixels(count, size)
    pixels = np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3) or len(pixels) < count:
        raise UsageError(
            f"images for the verification are {pixels.dtype} {list(pixels.shape)}; pass at least "
            f"{count} as uint8 [count, {size}, {size}, 3], or None for random ones"
        )
    return Export(net, variables, metadata, pixels[:count]), path


def random_pixels(count: int, size: int) -> UInt8[np.ndarray, "count size size 3"]:
    """Returns random images: noise at two scales, single pixels and quarters of a side.

    With noise of single pixels only, all images would have nearly the same means and logits.
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 128, (count, 4, 4, 3), np.uint8)
    part = -(-size // 4)
    coarse = coarse.repeat(part, axis=1).repeat(part, axis=2)[:, :size, :size]
    return coarse + rng.integers(0, 128, (count, size, size, 3), np.uint8)


def check_extension(path: str | Path, extension: str) -> None:
    """Raises UsageError unless a path has the extension by which tools know the format."""
    if Path(path).suffix.lower() != extension:
        raise UsageError(f"{path}: give a name that ends in {extension}, such as model{extension}")


def import_package(name: str, extra: str = "export") -> Any:
    """Returns a third-party package, imported at its first use.

    Raises:
      UsageError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{name.partition('.')[0]} cannot be imported ({one_line(error, 80)}); install it with "
            f"pip install -e '.[{extra}]'"
        ) from error
