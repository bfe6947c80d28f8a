"""Compares training steps with PyTorch's and naive Flax's in interleaved runs (`make bench`).

  python -m experiments.benchmarks.pytorch [--rounds=11]

On a CPU: a net of widths 16 to 256 on 32 x 32 images, batch 64, float32. On a GPU: B1 at 224,
batch 256, bfloat16, with PyTorch in channels_last under torch.compile(mode="max-autotune"). Both
take plain SGD steps on the same batch. Ratios are medians over interleaved rounds, so that other
load on the machine affects all alike.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave memory for PyTorch

import importlib.util
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import repvgg_jax as rj
from experiments.sweeps.flags import Parser, run_command
from repvgg_jax.bench.counting import count_macs
from repvgg_jax.bench.timing import peak_rate, ratio, time_interleaved
from repvgg_jax.blocks.registry import BLOCKS
from repvgg_jax.blocks.repvgg import RepVGGBlock
from repvgg_jax.nets import abstract
from repvgg_jax.ops import onednn
from repvgg_jax.runtime.compilation import temporaries_bytes

ON_GPU = False  # set by main
RATE = 0.01


class NaiveBlock(RepVGGBlock):
    """RepVGG's block from Flax's own layers, with derived gradients and the same variables."""

    branch_statistics: str = "batch"

    def conv(self, x: jax.Array, branch: str, size: int) -> jax.Array:
        """Applies `nn.Conv`."""
        return nn.Conv(
            self.features,
            (size, size),
            self.strides,
            padding=[(size // 2, size // 2)] * 2,
            use_bias=False,
            dtype=self.dtype,
            name=f"conv_{branch}",
        )(x)

    def norm(self, x: jax.Array, branch: str, train: bool) -> jax.Array:
        """Applies `nn.BatchNorm`."""
        return nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, name=f"bn_{branch}")(x)


BLOCKS["naive"] = NaiveBlock


def make_net(block: str, **overrides: Any) -> Any:
    """Returns the measured net with a given block."""
    if ON_GPU:
        return rj.create("repvgg_b1", block=block, dtype="bfloat16", **overrides)
    return rj.create(
        "repvgg_a0",
        depths=(1, 2, 4, 8, 1),
        widths=(16, 32, 64, 128, 256),
        strides=(1, 1, 2, 2, 2),
        num_classes=10,
        block=block,
        **overrides,
    )


def batch_shape() -> tuple[int, int]:
    """Returns the batch size and the image size."""
    return (256, 224) if ON_GPU else (64, 32)


def gradients(net: Any, variables: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
    """Returns the gradients of the parameters, and the updated statistics."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, updated = net.apply(given, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updated["batch_stats"]

    return jax.grad(loss, has_aux=True)(variables["params"])


def jax_step(net: Any) -> tuple[Callable[[], Any], int]:
    """Returns a function that takes the next SGD step, and the bytes of its temporaries."""
    batch, size = batch_shape()
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3), net.dtype)
    labels = jnp.arange(batch) % net.num_classes

    # The batch is an argument: computations on a constant would be done at compile time.
    def step(variables: Any, images: jax.Array, labels: jax.Array) -> Any:
        grads, stats = gradients(net, variables, images, labels)
        params = jax.tree.map(lambda p, g: p - RATE * g, variables["params"], grads)
        return {"params": params, "batch_stats": stats}

    state = rj.init(net, jax.random.key(0), size)
    compiled = jax.jit(step, donate_argnums=0).lower(state, images, labels).compile()

    def run() -> Any:
        nonlocal state
        state = compiled(state, images, labels)
        return state

    return run, temporaries_bytes(compiled)


def torch_step(plain: bool) -> Callable[[], None]:
    """Returns a function that takes the same SGD step in PyTorch."""
    import torch

    from experiments.reference.torch_repvgg import TwinRepVGG

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net, (batch, size) = make_net("repvgg"), batch_shape()
    device = "cuda" if ON_GPU else "cpu"
    twin = TwinRepVGG(net)
    twin = (twin.plain() if plain else twin).to(device, memory_format=torch.channels_last)
    forward = torch.compile(twin, mode="max-autotune") if ON_GPU else twin
    optimizer = torch.optim.SGD(twin.parameters(), RATE)
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % net.num_classes

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=ON_GPU):
            loss = torch.nn.functional.cross_entropy(forward(images).float(), labels)
        loss.backward()
        optimizer.step()
        if ON_GPU:
            torch.cuda.synchronize()

    return run


def b1_temporaries(block: str) -> int:
    """Returns bytes of a training step's temporaries for B1 at 224, 32 images, float32."""
    net = rj.create("repvgg_b1", block=block)
    variables = abstract(net)
    images = jax.ShapeDtypeStruct((32, 224, 224, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((32,), jnp.int32)
    compiled = jax.jit(partial(gradients, net)).lower(variables, images, labels).compile()
    return temporaries_bytes(compiled)


def fused_share_of_peak(rounds: int) -> float:
    """Returns the speed of the fused net relative to `peak_rate`."""
    batch, size = batch_shape()
    net = make_net("repvgg")
    fused_net, fused_variables = rj.fuse(net, rj.init(net, jax.random.key(0), size))
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 3), net.dtype)
    forward = jax.jit(fused_net.apply)
    seconds = statistics.median(
        time_interleaved({"": lambda: forward(fused_variables, images)}, rounds)[""]
    )
    operations = 2 * batch * count_macs(fused_net, fused_variables, size)
    return operations / seconds / peak_rate(net.dtype)


def main() -> None:
    """Runs the benchmark and prints the table."""
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="measured runs of each step")
    rounds = parser.parse_args().rounds
    global ON_GPU
    ON_GPU = jax.default_backend() == "gpu"
    if not ON_GPU and (reason := onednn.unavailable()):
        print(f"without oneDNN: {reason}")
    nets = {
        "naive": make_net("naive", conv_algorithm="xla"),
        "three branches": make_net("repvgg"),
        "by moments": make_net("repvgg", branch_statistics="moments"),
        "plain": make_net("plain"),
    }
    if not ON_GPU:
        nets["three branches, XLA"] = make_net("repvgg", conv_algorithm="xla")
        nets["one by one, XLA"] = make_net(
            "repvgg", branch_statistics="batch", conv_algorithm="xla"
        )
        nets["plain, XLA"] = make_net("plain", conv_algorithm="xla")
    steps = {name: jax_step(net) for name, net in nets.items()}
    runs = {name: run for name, (run, _) in steps.items()}
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: not measured (pip install torch)")
    else:
        runs |= {"PyTorch": torch_step(False), "PyTorch, plain": torch_step(True)}
    times = time_interleaved(runs, rounds)

    batch, size = batch_shape()
    print(f"{jax.devices()[0].device_kind}: batch {batch} at {size}, {rounds} rounds")
    print(f"{'training step':<22} {'ms, median':>10} {'fastest':>8} {'temporaries MB':>15}")
    for name, values in times.items():
        memory = f"{steps[name][1] / 1e6:.0f}" if name in steps else "-"
        print(
            f"{name:<22} {1e3 * statistics.median(values):>10.0f} {1e3 * min(values):>8.0f} "
            f"{memory:>15}"
        )
    print(f"\n{'ratio of times':<44} {'measured':>8}")
    for name, to in [
        ("three branches", "plain"),
        ("by moments", "plain"),
        ("three branches, XLA", "plain, XLA"),
        ("one by one, XLA", "plain, XLA"),
        ("naive", "plain, XLA"),
        ("PyTorch", "PyTorch, plain"),
        ("three branches", "PyTorch"),
        ("by moments", "PyTorch"),
        ("plain", "PyTorch, plain"),
        ("three branches", "naive"),
    ]:
        if {name, to} <= times.keys():
            print(f"{name + ' / ' + to:<44} {ratio(times, name, to):>8.2f}")
    if ON_GPU:
        share = fused_share_of_peak(rounds)
        print(f"fused net, share of the fastest matrix product or convolution: {share:.2f}")
    naive, ours = b1_temporaries("naive"), b1_temporaries("repvgg")
    print(
        f"\nB1 at 224, batch 32: temporaries {ours / 1e6:.0f} of {naive / 1e6:.0f} MB naive, ",
        end="",
    )
    print(f"{ours / naive:.2f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
