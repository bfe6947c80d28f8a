"""Compares training steps on a CPU with PyTorch's and naive Flax's, in interleaved runs.

  python -m experiments.benchmarks.pytorch [--rounds=11]

A net of widths 16 to 256 on 32 x 32 images, batch 64, float32. Both take plain SGD steps on the
same batch. Ratios are medians over interleaved rounds, so that other load on the machine affects
all alike. `python -m experiments.benchmarks.gpu` is for GPUs.
"""

import importlib.util
import statistics
import sys
from typing import Any

import jax
from flax import linen as nn

import repvgg_jax as rj
from experiments.benchmarks.programs import (
    TorchDevice,
    jax_step,
    step_temporaries,
)
from experiments.sweeps.flags import Parser, run_command
from repvgg_jax.bench.timing import ratio, time_interleaved
from repvgg_jax.blocks.registry import BLOCKS
from repvgg_jax.blocks.repvgg import RepVGGBlock
from repvgg_jax.nets import Net
from repvgg_jax.ops import onednn

BATCH, SIZE = 64, 32


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


def make_net(block: str, **overrides: Any) -> Net:
    """Returns the measured net with a given block."""
    return rj.create(
        "repvgg_a0",
        depths=(1, 2, 4, 8, 1),
        widths=(16, 32, 64, 128, 256),
        strides=(1, 1, 2, 2, 2),
        num_classes=10,
        block=block,
        **overrides,
    )


def main() -> None:
    """Runs the benchmark and prints the table."""
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="measured runs of each step")
    rounds = parser.parse_args().rounds
    if reason := onednn.unavailable():
        print(f"without oneDNN: {reason}")
    nets = {
        "naive": make_net("naive", conv_algorithm="xla"),
        "three branches": make_net("repvgg"),
        "by moments": make_net("repvgg", branch_statistics="moments"),
        "plain": make_net("plain"),
        "three branches, XLA": make_net("repvgg", conv_algorithm="xla"),
        "one by one, XLA": make_net("repvgg", branch_statistics="batch", conv_algorithm="xla"),
        "plain, XLA": make_net("plain", conv_algorithm="xla"),
    }
    steps = {
        name: jax_step(net, rj.init(net, jax.random.key(0)), BATCH, SIZE)
        for name, net in nets.items()
    }
    runs = {name: program.run for name, program in steps.items()}
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: not measured (pip install torch)")
    else:
        torch, net = TorchDevice("cpu"), make_net("repvgg")
        runs["PyTorch"] = torch.step(net, BATCH, SIZE, plain=False)
        runs["PyTorch, plain"] = torch.step(net, BATCH, SIZE, plain=True)
    times = time_interleaved(runs, rounds)

    print(f"{jax.devices()[0].device_kind}: batch {BATCH} at {SIZE}, {rounds} rounds")
    print(f"{'training step':<22} {'ms, median':>10} {'fastest':>8} {'temporaries MB':>15}")
    for name, values in times.items():
        memory = f"{(steps[name].temporaries or 0) / 1e6:.0f}" if name in steps else "-"
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
    naive, ours = (
        step_temporaries(rj.create("repvgg_b1", block=block), 32, 224)
        for block in ("naive", "repvgg")
    )
    print(
        f"\nB1 at 224, batch 32: temporaries {ours / 1e6:.0f} of {naive / 1e6:.0f} MB naive, "
        f"{ours / naive:.2f}"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
