"""Compares a fused net's CPU time with onnxruntime's in interleaved runs; above 1 is slower.

  python -m experiments.benchmarks.onnxruntime [--net=repvgg_a0] [--batches=1,16] [--pairs=15]

Needs `pip install onnxruntime onnx`. Both use all cores of the process (set by `taskset`)
and the same weights, which are constants of onnxruntime's graph and, with `--constant`, of our
program. A pair is measured again if other processes used the machine, until `--patience` runs out.
On a machine that is never quiet, use `taskset -c 0 ... --processor_time`.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.flags import check_installed
from experiments.sweeps.flags import Parser, positive_integers, run_command
from repvgg_jax import create
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.onnx_file import export_onnx
from repvgg_jax.fusion.fuse import fuse
from repvgg_jax.nets import init
from repvgg_jax.runtime.devices import keep_freed_memory

PATIENCE = "seconds to wait for a quiet machine, per batch size"
SWITCHES = {
    "constant": "compile our weights as constants",
    "processor_time": "measure processor time on one core",
    "keep_freed_memory": "keep freed memory in the process",
    "train_form": "run our train form, in evaluation mode",
}
TURN = 0.15  # minimum seconds of a measurement, since /proc/stat counts in hundredths
SIZE = 224  # side of the images, pixels
SHARE = 0.1  # fraction of a core that other processes may use during a pair


def make_session(file: str | Path) -> Any:
    """Returns an onnxruntime session of an ONNX file, which uses all cores of the process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    # Otherwise its threads would keep spinning while another program runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def exported(net: Any, variables: Any) -> Any:
    """Returns an onnxruntime session of a fused net, as this package exports it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        export_onnx(net, variables, path, metadata=Metadata(image_size=SIZE))
        return make_session(path)


def seconds(call: Callable[[], Any], calls: int, processor_time: bool) -> float:
    """Returns the mean time per call over consecutive calls."""
    clock = time.process_time if processor_time else time.perf_counter
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def others() -> float:
    """Returns the CPU seconds that other processes have used so far."""
    with open("/proc/stat") as lines:
        user, nice, system, _, _, irq, softirq, steal = map(int, next(lines).split()[1:9])
    own = os.times()
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK") - own.user - own.system


def quiet_pairs(
    ours: Callable[[], Any], theirs: Callable[[], Any], options: argparse.Namespace
) -> tuple[list[tuple[float, float]], int]:
    """Returns pairs of our time and theirs, and the number of pairs measured on a quiet machine.

    Once the patience has run out, pairs disturbed by other processes are accepted too.
    """
    measure = partial(seconds, processor_time=options.processor_time)
    calls = [max(1, round(TURN / measure(call, 3))) for call in (ours, theirs)]
    pairs: list[tuple[float, float]] = []
    quiet = 0
    end = time.perf_counter() + options.patience
    while len(pairs) < options.pairs:
        start, before = time.perf_counter(), others()
        pair = measure(ours, calls[0]), measure(theirs, calls[1])
        share = (others() - before) / (time.perf_counter() - start)
        alone = options.processor_time or share < SHARE
        if alone or time.perf_counter() > end:
            pairs.append(pair)
            quiet += alone
        else:
            time.sleep(0.5)
    return pairs, quiet


def compare(batch: int, options: argparse.Namespace) -> None:
    """Prints both times at a batch size, and the ratio."""
    net = create(options.net, conv_algorithm=options.conv_algorithm)
    variables = init(net, jax.random.key(0))
    fused_net, fused_variables = fuse(net, variables)
    images = np.random.default_rng(0).normal(size=(batch, SIZE, SIZE, 3)).astype(np.float32)
    session = exported(fused_net, fused_variables)
    nchw, nhwc = np.ascontiguousarray(images.transpose(0, 3, 1, 2)), jax.device_put(images)
    own_net, own = (net, variables) if options.train_form else (fused_net, fused_variables)
    closed, opened = jax.jit(partial(own_net.apply, own)), partial(jax.jit(own_net.apply), own)
    ours = lambda: np.asarray((closed if options.constant else opened)(nhwc))  # noqa: E731
    theirs = lambda: session.run(None, {"images": nchw})[0]  # noqa: E731
    expected, got = theirs(), ours()
    if not (error := np.abs(got - expected).max() / np.abs(expected).max()) < 1e-4:
        raise RunError(f"the nets differ: the relative error of the logits is {error:.1e}")
    pairs, quiet = quiet_pairs(ours, theirs, options)
    low, ratio, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    a, b = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"{options.net} batch {batch}: ours {a:.1f} ms, onnxruntime {b:.1f} ms, ratio {ratio:.2f}"
    )
    noise = "" if quiet == len(pairs) else f"; {len(pairs) - quiet} pairs disturbed"
    print(f"  (quartiles {low:.2f} {high:.2f}), error of the logits {error:.0e}{noise}", flush=True)


def main() -> None:
    """Compares all batch sizes."""
    parser = Parser(__doc__)
    parser.add_argument("--net", default="repvgg_a0", help="name of a net")
    parser.add_argument("--batches", type=positive_integers, default="1,16", help="images per call")
    parser.add_argument("--pairs", type=int, default=15, help="number of measured pairs")
    parser.add_argument("--conv_algorithm", default="auto", help="value of model.conv_algorithm")
    parser.add_argument("--patience", type=float, default=120.0, help=PATIENCE)
    for name, text in SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    options = parser.parse_args()
    check_installed("onnxruntime", "onnx")
    if options.keep_freed_memory and not keep_freed_memory():
        raise UsageError("--keep_freed_memory needs glibc's mallopt")
    for batch in options.batches:
        compare(batch, options)


if __name__ == "__main__":
    sys.exit(run_command(main))
