"""Compares ONNX files of this package with those of PyTorch's exporters; below 1, ours is faster.

  python -m experiments.benchmarks.exporters [--nets=repvgg_a0] [--batches=1,16] [--rounds=15]

All files of a net hold the same weights: those of its fused PyTorch twin, whose head is written as
in the official code (AdaptiveAvgPool2d, flatten). PyTorch exports it by torch.export with its
optimizer (`dynamo`, needs `pip install onnxscript`) and by TorchScript. onnxruntime runs the files
in interleaved rounds on all cores of the process (set by `taskset`). On a machine that is never
quiet, use `taskset -c 0 ... --processor_time`.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.flags import check_installed
from experiments.benchmarks.markdown import markdown
from experiments.benchmarks.onnxruntime import make_session
from experiments.sweeps.flags import Parser, positive_integers, run_command
from repvgg_jax import create
from repvgg_jax.bench.timing import Times, quartiles, ratio, time_interleaved
from repvgg_jax.errors import RunError
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.onnx_file import export_onnx
from repvgg_jax.interop.pytorch import from_torch

SIZE = 224  # side of the images, pixels
OURS, DYNAMO, SCRIPT = "ours", "torch.export", "TorchScript"
COLUMNS = ["net", "batch", OURS, DYNAMO, "ratio", SCRIPT, "ratio", "size of the file"]


def write_files(name: str, folder: Path) -> dict[str, Path]:
    """Writes a fused net by each exporter; returns exporter -> file."""
    import torch

    from experiments.reference.torch_repvgg import twin_of

    net = create(name)
    twin = twin_of(net).deploy()
    twin.classify = lambda x: twin.linear(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
    fused = net.clone(block="fused")
    files = {each: folder / f"{each}.onnx" for each in (OURS, DYNAMO, SCRIPT)}
    metadata = Metadata(image_size=SIZE)
    export_onnx(fused, from_torch(fused, twin.state_dict()), files[OURS], metadata=metadata)
    images = (torch.zeros(2, 3, SIZE, SIZE),)
    names: dict[str, Any] = dict(input_names=["images"], output_names=["logits"])
    with warnings.catch_warnings(action="ignore"):
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            twin,
            images,
            str(files[DYNAMO]),
            dynamo=True,
            optimize=True,
            external_data=False,
            dynamic_shapes=shapes,
            verbose=False,
            **names,
        )
        axes = {"images": {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(
            twin, images, str(files[SCRIPT]), dynamo=False, dynamic_axes=axes, **names
        )
    return files


def compare(files: dict[str, Path], batch: int, options: argparse.Namespace) -> Times:
    """Returns the seconds of onnxruntime with each file, after a check that they agree."""
    images = np.random.default_rng(0).normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32)
    sessions = {name: make_session(file) for name, file in files.items()}
    runs = {
        name: partial(session.run, ["logits"], {"images": images})
        for name, session in sessions.items()
    }
    logits = {name: run()[0] for name, run in runs.items()}
    for name, each in logits.items():
        if not np.abs(each - logits[OURS]).max() < 1e-4 * np.abs(each).max():
            raise RunError(f"the logits of {name} differ")
    clock = time.process_time if options.processor_time else time.perf_counter
    return time_interleaved(runs, options.rounds, clock)


def row(name: str, batch: int, times: Times, sizes: dict[str, int]) -> list[str]:
    """Returns the cells of `COLUMNS`."""

    def milliseconds(exporter: str) -> str:
        return f"{1e3 * statistics.median(times[exporter]):.1f} ms"

    def compared(to: str) -> str:
        low, high = quartiles([a / b for a, b in zip(times[OURS], times[to], strict=True)])
        return f"{ratio(times, OURS, to):.2f} ({low:.2f} to {high:.2f})"

    share = f"{sizes[OURS] / sizes[DYNAMO]:.4f}"
    pairs = [cell for to in (DYNAMO, SCRIPT) for cell in (milliseconds(to), compared(to))]
    return [name, str(batch), milliseconds(OURS), *pairs, share]


def main() -> None:
    """Compares all nets and batch sizes, and prints a table."""
    parser = Parser(__doc__)
    parser.add_argument("--nets", default="repvgg_a0,repvgg_a2,repvgg_b1", help="names of RepVGGs")
    parser.add_argument("--batches", type=positive_integers, default="1,16", help="images per call")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds")
    parser.add_argument("--processor_time", action="store_true", help="measure processor time")
    options = parser.parse_args()
    check_installed("torch", "onnx", "onnxruntime", "onnxscript")
    rows = []
    for name in options.nets.split(","):
        with tempfile.TemporaryDirectory() as folder:
            files = write_files(name, Path(folder))
            sizes = {exporter: file.stat().st_size for exporter, file in files.items()}
            for batch in options.batches:
                rows.append(row(name, batch, compare(files, batch, options), sizes))
                print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    print(markdown(COLUMNS, rows))
    print(f"load of the machine, mean over a minute: {os.getloadavg()[0]:.1f} processes")


if __name__ == "__main__":
    sys.exit(run_command(main))
