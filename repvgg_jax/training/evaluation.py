"""Evaluation: accuracy, loss and confusion matrix; every example is counted exactly once."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from repvgg_jax.data.imagenet import IMAGENET_MEAN, IMAGENET_STD
from repvgg_jax.data.images import to_network_input
from repvgg_jax.data.pipeline import Batch, eval_batches
from repvgg_jax.data.resident import put_eval_batches
from repvgg_jax.data.split import Split
from repvgg_jax.errors import RunError
from repvgg_jax.nets import check_pair
from repvgg_jax.ops.convolution import is_slow_in_loops
from repvgg_jax.runtime.loops import stacked_loop
from repvgg_jax.runtime.mesh import replicate, shard_batch
from repvgg_jax.training.steps_per_call import MOST, StepsPerCall

Metrics = dict[str, Any]

# With more classes, the confusion matrix, whose size is their number squared, would fill a report.
MOST_CLASSES = 100
_SCALARS = ("top1", "top5", "loss", "count")


def eval_step(
    net: nn.Module,
    variables: Any,
    batch: Batch,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Metrics:
    """Returns `top1`, `top5`, `loss` and `count`, summed over the examples with `mask` 1.

    Nets of at most five outputs have no `top5`, which would always be 1. `confusion` [classes,
    classes] counts examples by label and prediction, for a net of at most `MOST_CLASSES` outputs.
    """
    logits = net.apply(variables, to_network_input(batch["image"], mean, std), train=False)
    label, mask = batch["label"], batch["mask"]
    # top_k ranks equal logits by index, so that constant logits do not always count as hits.
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
    hits = best == label[:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    sums = {
        "top1": (hits[:, 0] * mask).sum(),
        "loss": jnp.where(mask > 0, losses, 0.0).sum(),
        "count": mask.sum(),
    }
    classes = logits.shape[-1]
    if classes > 5:
        sums["top5"] = (hits.any(-1) * mask).sum()
    if classes <= MOST_CLASSES:
        # A product of one-hot rows, unlike a scatter, is summed over the devices like the others.
        labels = jax.nn.one_hot(label, classes) * mask[:, None]
        sums["confusion"] = labels.T @ jax.nn.one_hot(best[:, 0], classes)
    return sums


compiled_step = jax.jit(eval_step, static_argnames=("net", "mean", "std"))


@partial(jax.jit, static_argnames=("net", "mean", "std", "most"))
def eval_steps(
    net: nn.Module,
    variables: Any,
    batches: Mapping[str, Array],
    start: Array,
    count: Array,
    *,
    most: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Metrics:
    """Returns the sums of `eval_step` for each of `count` batches from `start` on, [most, ...]."""

    def step(carry: None, index: Array) -> tuple[None, Metrics]:
        batch = jax.tree.map(lambda rows: rows[start + index], batches)
        return carry, eval_step(net, variables, batch, mean=mean, std=std)

    return stacked_loop(step, None, count, most)[1]


def evaluate(
    net: nn.Module,
    variables: Any,
    batches: Iterable[Batch],
    *,
    mesh: Mesh | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    after_batch: Callable[[], None] | None = None,
) -> Metrics:
    """Returns accuracy and loss over all examples of the batches, each counted once.

    Args:
      net: a net in either form.
      variables: variables of the net.
      batches: dicts of `image`, `label` and `mask`, which is 0 for padding.
      mesh: mesh to split the batches over; None for the default device.
      mean: mean of each channel of [0, 1] RGB, for uint8 images.
      std: standard deviation of each channel of [0, 1] RGB, for uint8 images.
      after_batch: called after each batch; an exception from it ends the evaluation.

    Returns:
      `top1` and `top5` (fractions; the latter for nets of more than five outputs), `loss` (nats per
      image), `count` (images). For a net of at most `MOST_CLASSES` outputs, also `confusion`: int64
      [classes, classes], whose entry [i, j] is the number of images of class i that are predicted
      as class j.

    Raises:
      UsageError: if raw parameters come with averaged statistics, or vice versa.
      RunError: if the batches contain no examples.
    """
    check_pair(variables)
    if mesh:  # `load` puts variables on one device, and training may have split them
        variables = replicate(variables, mesh)
    total: Metrics = {}
    pending: Metrics = {}
    for batch in batches:
        batch = shard_batch(batch, mesh) if mesh else batch
        sums = compiled_step(net, variables, batch, mean=mean, std=std)
        _add(total, pending)  # waits, since more pending batches could fill the device
        pending = sums
        if after_batch:
            after_batch()
    _add(total, pending)
    return _means(total)


def _means(total: Metrics) -> Metrics:
    count = int(total.get("count", 0))
    if count == 0:
        raise RunError("nothing to evaluate: the evaluation split has no readable image")
    result: Metrics = {name: float(value) / count for name, value in scalars(total).items()}
    result["count"] = count
    if "confusion" in total:
        result["confusion"] = total["confusion"].astype(np.int64)
    return result


def _add(total: Metrics, sums: Metrics) -> None:
    """Adds the sums of a batch to `total` in float64: float32 cannot count beyond 2**24 images."""
    for name, value in jax.device_get(sums).items():
        total[name] = total.get(name, 0.0) + np.asarray(value, np.float64)


def scalars(metrics: Metrics) -> dict[str, float]:
    """Returns the metrics of `evaluate` that are numbers, for curves and checkpoints."""
    return {name: metrics[name] for name in _SCALARS if name in metrics}


@dataclass(frozen=True)
class Evaluation:
    """The evaluation split on a mesh: `evaluation(net, variables)` returns its metrics.

    A split in memory is put onto the devices at the first call, and evaluated in few calls, unless
    loops are slow (`is_slow_in_loops`).
    """

    data: Split
    mesh: Mesh
    _length: StepsPerCall = field(default_factory=StepsPerCall, init=False, compare=False)

    def __call__(
        self, net: nn.Module, variables: Any, after_batch: Callable[[], None] | None = None
    ) -> Metrics:
        """Returns the metrics over the whole split, of which each process reads its share.

        Arguments, results and errors are those of `evaluate`; `after_batch` may be called after
        several batches.
        """
        if is_slow_in_loops(net.conv_algorithm, net.dtype) or self._resident is None:
            return evaluate(
                net,
                variables,
                self.data.eval_batches(),
                mesh=self.mesh,
                mean=self.data.mean,
                std=self.data.std,
                after_batch=after_batch,
            )
        check_pair(variables)
        variables = replicate(variables, self.mesh)
        total: Metrics = {}
        done, batches = 0, len(self._resident["label"])
        most = min(batches, MOST)
        while done < batches:
            began = time.monotonic()
            count = min(self._length.number, batches - done)
            sums = eval_steps(
                net,
                variables,
                self._resident,
                np.int32(done),
                np.int32(count),
                most=most,
                mean=self.data.mean,
                std=self.data.std,
            )
            self._length.wait_and_time(began, count, sums)
            sums = jax.device_get(sums)
            for row in range(count):  # in this order, whatever the number in a call
                _add(total, {name: values[row] for name, values in sums.items()})
            done += count
            if after_batch:
                after_batch()
        return _means(total)

    @cached_property
    def _resident(self) -> dict[str, Array] | None:
        return put_eval_batches(self.data, self.mesh)

    def images(self, count: int) -> Float[Array, "count height width channels"]:
        """Returns the first images of the split, normalized."""
        return to_network_input(jnp.asarray(self.pixels(count)), self.data.mean, self.data.std)

    def pixels(self, count: int) -> UInt8[np.ndarray, "count height width channels"]:
        """Returns the first images of the split.

        Raises:
          RunError: if no image can be read.
        """
        rows: list[np.ndarray] = []
        data = self.data
        # `data.eval_batches()` would give each process only its share.
        for batch in eval_batches(data.loaded, data.transform, data.batch_size, workers=0):
            rows.extend(batch["image"][batch["mask"] > 0])
            if len(rows) >= count:
                break
        if not rows:
            raise RunError("cannot verify: the evaluation split has no readable image")
        return np.stack(rows[:count])
