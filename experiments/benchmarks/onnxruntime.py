"""Compares a fused net's CPU time with onnxruntime's in interleaved runs; above 1 is slower.

  python -m experiments.benchmarks.onnxruntime [--net=repvgg_a0] [--batches=1,16] [--pairs=15]

Needs `pip install onnxruntime onnx`. Both use all cores of the process (set by `taskset`)
and the same weights, which are constants of onnxruntime's graph and, with `--constant`, of our
program. A pair is measured again if other processes used the machine, until `--patience` runs out.
On a machine that is never quiet, use `taskset -c 0 ... --processor_time`.
"""

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import app, flags

from repvgg_jax import create
from repvgg_jax.fusion.fuse import fuse
from repvgg_jax.nets import init
from repvgg_jax.runtime.compilation import jit
from repvgg_jax.runtime.devices import keep_freed_memory

NET = flags.DEFINE_string("net", "repvgg_a0", "name of a net that is a chain of blocks")
BATCHES = flags.DEFINE_list("batches", ["1", "16"], "images per call")
PAIRS = flags.DEFINE_integer("pairs", 15, "number of measured pairs")
ALGORITHM = flags.DEFINE_string("conv_algorithm", "auto", "value of model.conv_algorithm")
CONSTANT = flags.DEFINE_bool("constant", False, "compile our weights as constants")
PATIENCE = flags.DEFINE_float(
    "patience", 120, "seconds to wait for a quiet machine, per batch size"
)
PROCESSOR = flags.DEFINE_bool("processor_time", False, "measure processor time on one core")
KEEP = flags.DEFINE_bool("keep_freed_memory", False, "keep freed memory in the process")
TRAIN_FORM = flags.DEFINE_bool("train_form", False, "run our train form, in evaluation mode")
TURN = 0.15  # minimum seconds of a measurement, since /proc/stat counts in hundredths
SIZE = 224  # side of the images, pixels
SHARE = 0.1  # fraction of a core that other processes may use during a pair


def onnx_session(net: Any, params: Any, batch: int) -> Any:
    """Returns an onnxruntime session of the fused net, images NCHW -> logits.

    The graph is built from the plan, so that no exporter influences the comparison.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors, x = [], [], "images"

    def constant(name: str, value: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    for spec in net.plan():
        name = spec.name
        conv = jax.device_get(params[name]["conv"])
        kernel = constant(f"{name}_kernel", conv["kernel"].transpose(3, 2, 0, 1))
        inputs = [x, kernel, constant(f"{name}_bias", conv["bias"])]
        margin = spec.dilation * (spec.kernel_size // 2)
        geometry = dict(pads=[margin] * 4, group=spec.groups)
        geometry |= dict(strides=[spec.strides] * 2, dilations=[spec.dilation] * 2)
        nodes.append(helper.make_node("Conv", inputs, [f"{name}_sum"], **geometry))
        nodes.append(helper.make_node("Relu", [f"{name}_sum"], [x := name]))
    head = [constant(name, np.asarray(params["head"][name])) for name in ("kernel", "bias")]
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", *head], ["logits"]))
    shapes = (("images", (batch, 3, SIZE, SIZE)), ("logits", (batch, net.num_classes)))
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)] for n, shape in shapes]
    graph = helper.make_graph(nodes, "fused", *ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    # Otherwise its threads would keep spinning while our net runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Returns the mean time per call over consecutive calls."""
    clock = time.process_time if PROCESSOR.value else time.perf_counter
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
    ours: Callable[[], Any], theirs: Callable[[], Any]
) -> tuple[list[tuple[float, float]], int]:
    """Returns pairs of our time and theirs, and the number of pairs measured on a quiet machine.

    Once the patience has run out, pairs disturbed by other processes are accepted too.
    """
    calls = [max(1, round(TURN / seconds(call, 3))) for call in (ours, theirs)]
    pairs: list[tuple[float, float]] = []
    quiet = 0
    end = time.perf_counter() + PATIENCE.value
    while len(pairs) < PAIRS.value:
        start, before = time.perf_counter(), others()
        pair = seconds(ours, calls[0]), seconds(theirs, calls[1])
        share = (others() - before) / (time.perf_counter() - start)
        alone = PROCESSOR.value or share < SHARE
        if alone or time.perf_counter() > end:
            pairs.append(pair)
            quiet += alone
        else:
            time.sleep(0.5)
    return pairs, quiet


def compare(batch: int) -> None:
    """Prints both times at a batch size, and the ratio."""
    net = create(NET.value, conv_algorithm=ALGORITHM.value)
    variables = init(net, jax.random.key(0))
    fused_net, fused_variables = fuse(net, variables)
    images = np.random.default_rng(0).normal(size=(batch, SIZE, SIZE, 3)).astype(np.float32)
    session = onnx_session(fused_net, fused_variables["params"], batch)
    nchw, nhwc = np.ascontiguousarray(images.transpose(0, 3, 1, 2)), jax.device_put(images)
    own_net, own = (net, variables) if TRAIN_FORM.value else (fused_net, fused_variables)
    closed, opened = jit(partial(own_net.apply, own)), partial(jit(own_net.apply), own)
    ours = lambda: np.asarray((closed if CONSTANT.value else opened)(nhwc))  # noqa: E731
    theirs = lambda: session.run(None, {"images": nchw})[0]  # noqa: E731
    expected, got = theirs(), ours()
    if not (error := np.abs(got - expected).max() / np.abs(expected).max()) < 1e-4:
        sys.exit(f"the nets differ: the relative error of the logits is {error:.1e}")
    pairs, quiet = quiet_pairs(ours, theirs)
    low, ratio, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    a, b = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"{NET.value} batch {batch}: ours {a:.1f} ms, onnxruntime {b:.1f} ms, ratio {ratio:.2f}")
    noise = "" if quiet == len(pairs) else f"; {len(pairs) - quiet} pairs disturbed"
    print(f"  (quartiles {low:.2f} {high:.2f}), error of the logits {error:.0e}{noise}", flush=True)


def main(argv: list[str]) -> None:
    """Compares all batch sizes."""
    if missing := [name for name in ("onnxruntime", "onnx") if not importlib.util.find_spec(name)]:
        sys.exit(f"{missing[0]} is not installed: pip install onnxruntime onnx")
    if KEEP.value and not keep_freed_memory():
        sys.exit("this C library has no mallopt")
    for batch in BATCHES.value:
        compare(int(batch))


if __name__ == "__main__":
    app.run(main)
