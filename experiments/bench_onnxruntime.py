"""A fused net's speed on a CPU beside onnxruntime's, in pairs: ours, theirs, ours, theirs, ...

  python -m experiments.bench_onnxruntime [--net=repvgg_a0] [--batches=1,16] [--pairs=15]

Needs `pip install onnxruntime onnx`. Both have all cores of the process (`taskset` sets them) and
the same weights, as arguments of our call and as constants of theirs; `--constant` makes them
constants of ours too. A ratio above 1 says that we are slower. Where others use the machine, a pair
does not count; on one that is never quiet, `taskset -c 0 ... --processor_time` compares one core.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jax import Array

from repvgg_jax import create, fuse
from repvgg_jax.nets import init
from repvgg_jax.runtime import keep_freed_memory

NET = flags.DEFINE_string("net", "repvgg_a0", "one whose blocks are a plain chain")
BATCHES = flags.DEFINE_list("batches", ["1", "16"], "images a call")
SIZE = flags.DEFINE_integer("size", 224, "side of the images, pixels")
PAIRS = flags.DEFINE_integer("pairs", 15, "of turns")
ALGORITHM = flags.DEFINE_string("conv_algorithm", "auto", "as the config field")
CONSTANT = flags.DEFINE_bool("constant", False, "compile our weights in")
PATIENCE = flags.DEFINE_float("patience", 120, "seconds to wait for a quiet machine, a batch size")
PROCESSOR = flags.DEFINE_bool("processor_time", False, "of one core, for a machine never quiet")
KEEP = flags.DEFINE_bool("keep_freed_memory", False, "as `repvgg_jax.runtime` has it")
TRAIN_FORM = flags.DEFINE_bool("train_form", False, "ours unfused, in evaluation mode")
TURN = 0.15  # seconds a side at least: the system counts in hundredths
SHARE = 0.1  # of a core that others may use beside a pair that counts


def onnx_graph(net: Any, params: Any, batch: int, size: int) -> bytes:
    """The fused net as an ONNX model, images NCHW: Conv + Relu a block, the mean, the dense layer.

    Made by hand from the plan, so that nobody's exporter stands between.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors, x = [], [], "images"

    def constant(name: str, value: Array) -> str:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    for name, spec in net.plan().items():
        conv, margin = params[name]["conv"], spec["dilation"] * (spec["kernel_size"] // 2)
        kernel = constant(f"{name}_kernel", np.asarray(conv["kernel"]).transpose(3, 2, 0, 1))
        inputs = [x, kernel, constant(f"{name}_bias", np.asarray(conv["bias"]))]
        geometry = dict(pads=[margin] * 4, strides=[spec["strides"]] * 2, group=spec["groups"])
        geometry |= dict(dilations=[spec["dilation"]] * 2)
        nodes.append(helper.make_node("Conv", inputs, [f"{name}_sum"], **geometry))
        nodes.append(helper.make_node("Relu", [f"{name}_sum"], [x := name]))
    head = [constant(name, np.asarray(params["head"][name])) for name in ("kernel", "bias")]
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", *head], ["logits"]))
    shapes = {"images": (batch, 3, size, size), "logits": (batch, net.num_classes)}
    ends = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    }
    graph = helper.make_graph(nodes, "fused", [ends["images"]], [ends["logits"]], tensors)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def session(model: bytes) -> Any:
    """An onnxruntime session on this process's cores, whose threads rest between its calls."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    # Else they would spin on into our turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Of one call, the mean of several in a row."""
    clock = time.process_time if PROCESSOR.value else time.perf_counter
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def others() -> float:
    """Processor seconds that this machine's other processes have used so far."""
    with open("/proc/stat") as lines:
        user, nice, system, _, _, irq, softirq, steal = map(int, next(lines).split()[1:9])
    own = os.times()
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK") - own.user - own.system


def quiet(work: Callable[[], Any]) -> tuple[Any, bool]:
    """What the work gives, and whether others had little of the machine meanwhile."""
    start, before = time.perf_counter(), others()
    result = work()
    share = (others() - before) / (time.perf_counter() - start)
    return result, PROCESSOR.value or share < SHARE


def quiet_pairs(ours: Callable[[], Any], theirs: Callable[[], Any]) -> list[tuple[float, float]]:
    """Times of our call and of theirs; pairs beside which others had work are thrown away."""
    calls = [max(1, round(TURN / seconds(call, 3))) for call in (ours, theirs)]
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + PATIENCE.value
    while len(pairs) < PAIRS.value:
        if time.perf_counter() > end:
            sys.exit(f"others use this machine: {len(pairs)} of {PAIRS.value} pairs were quiet")
        if PROCESSOR.value or quiet(lambda: time.sleep(0.2))[1]:
            pair, counts = quiet(lambda: (seconds(ours, calls[0]), seconds(theirs, calls[1])))
            pairs += [pair] if counts else []
    return pairs


def compare(batch: int) -> None:
    """Prints both sides' times at a batch size, and the ratio."""
    size = SIZE.value
    net = create(NET.value, conv_algorithm=ALGORITHM.value)
    variables = init(net, jax.random.key(0))
    plain, fused = fuse(net, variables)
    images = np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)
    theirs = session(onnx_graph(plain, fused["params"], batch, size))
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    own_net, own = (net, variables) if TRAIN_FORM.value else (plain, fused)
    ours = jax.jit(own_net.apply)
    if CONSTANT.value:
        ours = jax.jit(lambda own, images: own_net.apply(fixed, images))
        own, fixed = {}, own
    pixels = jax.device_put(images)

    def our_call() -> np.ndarray:
        return np.asarray(ours(own, pixels))

    def their_call() -> np.ndarray:
        return theirs.run(None, {"images": nchw})[0]

    expected, got = their_call(), our_call()
    error = np.abs(got - expected).max() / np.abs(expected).max()
    if not error < 1e-4:
        sys.exit(f"the two are not the same net: their logits are {error:.1e} apart, relative")
    pairs = quiet_pairs(our_call, their_call)
    ratios = statistics.quantiles([a / b for a, b in pairs], n=4)
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"{NET.value} batch {batch}: ours {1e3 * a:.1f} ms, onnxruntime {1e3 * b:.1f} ms, ratio "
        f"{ratios[1]:.2f} (quartiles {ratios[0]:.2f} {ratios[2]:.2f}), logits {error:.0e} apart",
        flush=True,
    )


def main(argv: list[str]) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        sys.exit(f"{error.name} is not here: pip install onnxruntime onnx")
    if KEEP.value and not keep_freed_memory():
        sys.exit("this C library has no mallopt")
    for batch in BATCHES.value:
        compare(int(batch))


if __name__ == "__main__":
    app.run(main)
