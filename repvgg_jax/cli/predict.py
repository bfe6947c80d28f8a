"""`--mode=predict`: prints the classes of images, and writes them as CSV or JSON lines."""

import contextlib
import csv
import functools
import itertools
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from repvgg_jax.cli.table import Table
from repvgg_jax.data.prepare.progress import progress
from repvgg_jax.data.sources.base import EncodedSource, Record
from repvgg_jax.data.sources.listing import counted, list_images, missing_target
from repvgg_jax.errors import RunError, UsageError, one_line, reraise
from repvgg_jax.runtime.devices import cpu_cores
from repvgg_jax.runtime.processes import inform_once, warn_once
from repvgg_jax.serve.model import Model
from repvgg_jax.serve.open import open_model
from repvgg_jax.training.prediction import batch_shape

_BATCHES_AHEAD = 3  # batches whose images are read and decoded ahead


class Row(NamedTuple):
    """A line of the table and of the file: the probability of a class for an image."""

    file: str
    class_name: str
    probability: float


Writer = Callable[[Row], object]


def run_predict(
    workdir: Path | None,
    images: Path,
    top_k: int,
    output: Path | None,
    step: int | None = None,
    model: Path | None = None,
) -> None:
    """Prints the most probable classes of images, and writes them to `output` if it is given.

    The images are preprocessed as in the run's evaluation. Files that cannot be read as images are
    named on standard error and left out.

    Args:
      workdir: folder of a run; None for `model`.
      images: an image, or a folder of images, which may be in subfolders.
      top_k: number of classes for each image.
      output: a file to write, .csv or .jsonl.
      step: step of the weights; by default that of the latest checkpoint.
      model: an exported .onnx or .stablehlo file, in place of a workdir.

    Raises:
      UsageError: if there is no run, file, image or checkpoint of the step, an argument is
        invalid, or `output` cannot be written, which is then left as it was.
      RunError: if the outputs for an image are not finite, or standard output cannot be written.
    """
    if jax.process_count() > 1:
        raise UsageError("--mode=predict runs in a single process, on all of its devices")
    if (path := model or workdir) is None or None not in (model, workdir):
        raise UsageError(
            "--mode=predict needs --workdir or --model, and not both; "
            "example: python main.py --mode=predict --workdir runs/quickstart --images photos"
        )
    _check_output(output)
    files = find_images(images)
    classifier = open_model(path, step)
    classifier.check_top_k(top_k)
    inform_once(f"{classifier.description}; {_images(len(files))}")

    replacing = ", in place of an earlier file" if output is not None and output.exists() else ""
    source = files_source(files)
    start = time.monotonic()
    with _file(output) as write, _progress(len(files)) as advance:
        table = _table(files, classifier.names)
        for file, found in zip(files, probabilities(classifier, source), strict=True):
            for row in [] if found is None else _best(classifier, top_k, file, found):
                table.add(row.file, row.class_name, f"{row.probability:.4f}")
                write(row)
            advance(1)
            if output is None and not table.is_open:
                return
        if (bad := len(source.skipped)) == len(files):
            raise UsageError(f"--images={images}: nothing in it can be read as an image")
    if bad:
        warn_once("left out %d of %d files, which are named above", bad, len(files))
    read, seconds = len(files) - bad, time.monotonic() - start
    inform_once(f"classified {_images(read)} in {seconds:.1f} s, {read / seconds:,.0f} images/s")
    if output is not None:
        inform_once(f"wrote {output}{replacing}")


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _check_output(path: Path | None) -> None:
    """Raises UsageError unless a file of a known format can have this path, if there is one."""
    if path is None:
        return
    if path.suffix.lower() not in _WRITERS:
        known = " or ".join(_WRITERS)
        raise UsageError(f"--output={path}: its suffix must be {known}, which sets the format")
    if path.is_dir():
        raise UsageError(f"--output={path} is a folder; give the path of a file")


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


def probabilities(model: Model, source: EncodedSource) -> Iterator[np.ndarray | None]:
    """Yields the class probabilities of each image of a source; None for one that is corrupt.

    Threads, one per core, read and decode the images of the next batches while a batch is computed.
    """

    def prepared(index: int) -> np.ndarray | None:
        example = source.decode(source.read([index])[0], model.prepare)
        return None if example is None else example.image

    size = batch_shape(len(source), model.batch_size)
    indices = iter(range(len(source)))
    with ThreadPoolExecutor(cpu_cores(), "decode") as pool:

        def started(count: int) -> Iterator[Future[np.ndarray | None]]:
            return (pool.submit(prepared, index) for index in itertools.islice(indices, count))

        ahead = deque(started(_BATCHES_AHEAD * size))
        while ahead:
            images = [ahead.popleft().result() for _ in range(min(size, len(ahead)))]
            ahead.extend(started(size))
            readable = [image for image in images if image is not None]
            rows = iter(model.run(np.stack(readable)) if readable else ())
            for image in images:
                yield None if image is None else next(rows)


def _best(model: Model, top_k: int, file: str, found: np.ndarray) -> Iterator[Row]:
    """Yields the most probable classes of an image, the first of equal ones first.

    Raises:
      RunError: if the probabilities are NaN.
    """
    if np.isnan(found).any():
        raise RunError(f"{model.description}: the outputs for {file} are not finite numbers")
    for k in np.argsort(-found, kind="stable")[:top_k].tolist():
        yield Row(file, model.names[k], float(found[k]))


def _table(files: Sequence[str], names: Sequence[str]) -> Table:
    """Returns an empty table, wide enough for any of the files and classes."""
    file_width = max(map(len, ["file", *files]))
    class_width = max(map(len, ["class", *names]))
    return Table({"file": f"<{file_width}", "class": f"<{class_width}", "probability": ">11"})


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
    """Yields a function that writes a row to the file; without a path, it does nothing.

    The rows are written to a draft beside the file, which replaces it if no error occurs.
    """
    if path is None:
        yield lambda row: None
        return

    def failed(error: Exception) -> UsageError:
        return UsageError(f"--output={path} cannot be written ({one_line(error)})")

    naming_it = functools.partial(reraise, OSError, failed)
    draft = path.with_name(f"{path.name}.part")
    with naming_it():
        # `backslashreplace` writes an undecodable byte of a file name as \udcXX. That is an escape
        # of JSON too, so readers of JSON get the name as Python has it.
        file = draft.open("w", encoding="utf-8", errors="backslashreplace", newline="")
    try:
        yield naming_it()(_WRITERS[path.suffix.lower()](file))
        with naming_it():
            file.close()
            os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):  # the rest may not fit on the disk
            file.close()
        draft.unlink(missing_ok=True)


def _progress(total: int) -> contextlib.AbstractContextManager[Callable[[int], object]]:
    """Returns a progress display on stderr; none if a terminal shows the table itself."""
    if sys.stdout is not None and sys.stdout.isatty():
        return contextlib.nullcontext(lambda count: None)
    return progress("read", total, "images")
