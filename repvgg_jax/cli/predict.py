"""`--mode=predict`: prints the classes of images, and writes them as CSV or JSON lines."""

import contextlib
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from repvgg_jax.checkpoint.fused import fused_step
from repvgg_jax.checkpoint.load import load, load_trained
from repvgg_jax.checkpoint.manager import steps
from repvgg_jax.config.build import make_transform
from repvgg_jax.config.classes import class_names
from repvgg_jax.config.workdir import read_config
from repvgg_jax.data.pipeline import eval_batches
from repvgg_jax.data.prepare.progress import progress
from repvgg_jax.data.sources.base import EncodedSource, Record
from repvgg_jax.data.sources.listing import counted, list_images, missing_target
from repvgg_jax.errors import UsageError, one_line, reraise
from repvgg_jax.runtime.mesh import make_mesh, replicate, shard_batch
from repvgg_jax.runtime.processes import inform_once, warn_once
from repvgg_jax.training.prediction import batch_probabilities, batch_shape


class Row(NamedTuple):
    """A line of the table and of the file: the probability of a class for an image."""

    file: str
    class_name: str
    probability: float


Writer = Callable[[Row], object]


def run_predict(
    workdir: Path, images: Path, top_k: int, output: Path | None, step: int | None = None
) -> None:
    """Prints the most probable classes of images, and writes them to `output` if it is given.

    The images are preprocessed as in the run's evaluation. Files that cannot be read as images are
    named on standard error and left out.

    Args:
      workdir: folder of a run.
      images: an image, or a folder of images, which may be in subfolders.
      top_k: number of classes for each image.
      output: a file to write, .csv or .jsonl.
      step: step of the weights; by default that of the latest checkpoint.

    Raises:
      UsageError: if there is no run, image or checkpoint of the step, or an argument is invalid.
    """
    if jax.process_count() > 1:
        raise UsageError("--mode=predict runs in a single process, on all of its devices")
    config = read_config(workdir)
    classes = config.model.num_classes
    if not 1 <= top_k <= classes:
        raise UsageError(f"--top_k={top_k}: the net has {classes} classes; give 1 to {classes}")
    if output is not None and output.suffix.lower() not in _WRITERS:
        known = " or ".join(_WRITERS)
        raise UsageError(f"--output={output}: its suffix must be {known}, which sets the format")
    names = [*(class_names(workdir) or ())]
    names += map(str, range(len(names), classes))
    paths = find_images(images)
    net, variables, form = load_form(workdir, step)
    count = f"{len(paths):,} images" if len(paths) > 1 else "1 image"
    inform_once(f"{workdir}: {form}; {count}")

    replacing = ", in place of an earlier file" if output is not None and output.exists() else ""
    source = files_source(paths)
    found = probabilities(net, variables, source, config)
    with _file(output) as write, _progress(len(paths)) as advance:
        table = _Table(max(map(len, ["file", *paths])), max(map(len, ["class", *names])))
        for path, row in zip(paths, found, strict=True):
            for k in [] if row is None else np.argsort(-row, kind="stable")[:top_k].tolist():
                entry = Row(path, names[k], float(row[k]))
                table.add(entry)
                write(entry)
            advance(1)
            if output is None and not table.is_open:
                return
    if bad := len(source.skipped):
        if bad == len(paths):
            raise UsageError(f"--images={images}: nothing in it can be read as an image")
        warn_once("left out %d of %d files, which are named above", bad, len(paths))
    if output is not None:
        inform_once(f"wrote {output}{replacing}")


def find_images(path: Path) -> list[str]:
    """Returns the paths of the images in a folder and its subfolders, or the path of a file.

    Raises:
      UsageError: if there is no image.
    """
    if path.is_file():
        return [os.fspath(path)]
    if not path.is_dir():
        raise UsageError(f"--images={path}: {missing_target(path) or 'no such file or folder'}")
    left_out: Counter[str] = Counter()
    paths = list_images(os.fspath(path), left_out)
    if not paths:
        but = f", but {counted(left_out)}" if left_out else ""
        raise UsageError(f"--images={path} has no images such as .jpg or .png{but}")
    if left_out:
        warn_once("%s: left out %s", path, counted(left_out))
    return paths


def load_form(workdir: Path, step: int | None = None) -> tuple[nn.Module, Any, str]:
    """Returns a run's `(net, variables)` of a step, the latest by default, and which form it is.

    It is the fused form if the fused weights are of that step. A run without checkpoints may have a
    fused pair.
    """
    wanted = steps(workdir)[-1:] if step is None else [step]
    fused = fused_step(workdir)
    if fused is not None and wanted in ([], [fused]):
        return *load(workdir, fused=True, step=fused), f"fused form, step {fused}"
    net, variables, loaded = load_trained(workdir, step)
    other = ""
    if fused is not None and step is None:
        other = (
            f" (the fused weights are of step {fused}; --step={fused} uses them, "
            "--mode=fuse renews them)"
        )
    return net, variables, f"train form, step {loaded}{other}"


def files_source(paths: Sequence[str]) -> EncodedSource:
    """Returns a data source of image files without labels; damaged files are skipped."""

    def read(indices: Sequence[int]) -> list[Record]:
        return [_record(paths[index]) for index in indices]

    return EncodedSource("images", (), len(paths), read, label_range=1, skip_corrupt=True)


def _record(path: str) -> Record:
    """Reads a file; returns an unreadable record, which counts as corrupt, if that fails."""
    try:
        return Record(Path(path).read_bytes(), 0, path)
    except OSError as error:
        return Record(b"", 0, path, missing_target(path) or one_line(error))


def probabilities(
    net: nn.Module, variables: Any, source: EncodedSource, config: ConfigDict
) -> Iterator[np.ndarray | None]:
    """Yields the class probabilities of each image of a source; None for one that is corrupt.

    Images are decoded ahead by `data.workers` threads, and computed on all devices in batches of
    one shape.
    """
    mesh = make_mesh()
    most = -(-config.train.eval_batch_size // mesh.size) * mesh.size
    workers = config.data.workers
    share = -(-len(source) // max(workers, 1))  # each worker decodes batches of its own
    size = -(-batch_shape(share, most) // mesh.size) * mesh.size
    variables = replicate(variables, mesh)
    statistics = {"mean": tuple(config.data.mean), "std": tuple(config.data.std)}
    batches = eval_batches(source, make_transform(config), size, workers=workers)
    left = len(source)
    for batch in batches:
        images = shard_batch({"image": batch["image"]}, mesh)["image"]
        rows = np.asarray(batch_probabilities(net, variables, images, **statistics))
        for row, mask in zip(rows[:left], batch["mask"].tolist(), strict=False):
            yield row if mask else None
        left -= size


class _Table:
    """The table on standard output; `is_open` is False once its reader has left, as `head` does.

    The header is printed with the first row, below any warnings about the images before it.
    """

    def __init__(self, file_width: int, class_width: int) -> None:
        self.is_open = True
        self._line = f"{{:<{file_width}}}  {{:<{class_width}}}  {{:>11}}".format
        self._is_empty = True

    def add(self, row: Row) -> None:
        if self._is_empty:
            self._print("file", "class", "probability")
            self._is_empty = False
        self._print(row.file, row.class_name, f"{row.probability:.4f}")

    def _print(self, *cells: str) -> None:
        try:
            if self.is_open:
                print(self._line(*cells), flush=True)
        except BrokenPipeError:
            self.is_open = False
            # Otherwise, Python would report the unwritten rest when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_csv(file: Any) -> Writer:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("file", "class", "probability"))
    return writer.writerow


def _write_jsonl(file: Any) -> Writer:
    def write(row: Row) -> None:
        fields = {"file": row.file, "class": row.class_name, "probability": row.probability}
        file.write(json.dumps(fields, ensure_ascii=False) + "\n")

    return write


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl}


@contextlib.contextmanager
def _file(path: Path | None) -> Iterator[Writer]:
    """Yields a function that writes a row to the file; without a path, it does nothing."""
    if path is None:
        yield lambda row: None
        return

    def failed(error: Exception) -> UsageError:
        return UsageError(f"--output={path} cannot be written ({one_line(error)})")

    with reraise(OSError, failed), path.open("w", encoding="utf-8", newline="") as file:
        yield _WRITERS[path.suffix.lower()](file)


def _progress(total: int) -> contextlib.AbstractContextManager[Callable[[int], object]]:
    """Returns a progress display on stderr; none if a terminal shows the table itself."""
    if sys.stdout.isatty():
        return contextlib.nullcontext(lambda count: None)
    return progress("read", total, "images")
