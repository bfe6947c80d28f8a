"""The evaluation: every example of a split counted once, over any number of devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from repvgg_jax.config.build import make_source, make_transform
from repvgg_jax.data.images import IMAGENET_MEAN, IMAGENET_STD, to_network_input
from repvgg_jax.data.pipeline import eval_batches
from repvgg_jax.errors import RunError
from repvgg_jax.nets import check_pair
from repvgg_jax.runtime.compilation import jit
from repvgg_jax.runtime.mesh import replicate, shard_batch

Batch = Mapping[str, Any]
Metrics = dict[str, Any]


def eval_step(
    net: nn.Module,
    variables: Any,
    batch: Batch,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Metrics:
    """Sums over the examples that a batch's `mask` marks: `top1`, `top5`, `loss`, `count`.

    Not compiled; `compiled_step` is.
    """
    logits = net.apply(variables, to_network_input(batch["image"], mean, std), train=False)
    label, mask = batch["label"], batch["mask"]
    # Ranks by index among equals, so that a dead net of equal logits is not right everywhere.
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
    hits = best == label[:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return {
        "top1": (hits[:, 0] * mask).sum(),
        "top5": (hits.any(-1) * mask).sum(),
        "loss": jnp.where(mask > 0, losses, 0.0).sum(),
        "count": mask.sum(),
    }


@cache
def compiled_step(platform: str) -> Callable[..., Metrics]:
    """Returns `eval_step`, compiled for the devices of a platform."""
    return jit(eval_step, jax.devices(platform), static_argnames=("net", "mean", "std"))


def evaluate(
    net: nn.Module,
    variables: Any,
    batches: Iterable[Batch],
    *,
    mesh: Mesh | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    after_batch: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Accuracy over all examples of the batches, each counted once.

    Args:
      net, variables: of either form.
      batches: `image`, `label`, and a `mask` of 0 where an example only fills the batch.
      mesh: to split the batches over; the default device without one.
      mean, std: of [0, 1] RGB, for uint8 images.
      after_batch: called after each batch; what it raises ends the evaluation.

    Returns:
      `top1` and `top5` (shares), `loss` (nats an image), `count` (images).

    Raises:
      UsageError: for averaged parameters with statistics that are not, or the reverse.
      RunError: where the batches hold no example.
    """
    check_pair(variables)
    if mesh:  # those of `load` lie on one device, and training may have split them
        variables = replicate(variables, mesh)
    step = compiled_step(mesh.devices.flat[0].platform if mesh else jax.default_backend())
    sums = []
    for batch in batches:
        batch = shard_batch(batch, mesh) if mesh else batch
        sums.append(step(net, variables, batch, mean=mean, std=std))
        # One batch ahead of the device at most, or a fast source would fill its memory.
        sums[-2:-1] = jax.device_get(sums[-2:-1])
        if after_batch:
            after_batch()
    # Summed on the host: float32 stops counting single images at 16.8 million.
    total = {
        name: float(np.sum([row[name] for row in jax.device_get(sums)], dtype=np.float64))
        for name in ("top1", "top5", "loss", "count")
    }
    count = int(total["count"])
    if count == 0:
        raise RunError("nothing to evaluate: the evaluation split has no readable image")
    return {name: total[name] / count for name in ("top1", "top5", "loss")} | {"count": count}


class Evaluation:
    """A config's evaluation split, opened once: `(net, variables) -> metrics`, as `evaluate`."""

    def __init__(self, config: ConfigDict, mesh: Mesh):
        data = config.data
        self.mesh, self.mean, self.std = mesh, tuple(data.mean), tuple(data.std)
        self.source = make_source(config, "test")
        self._batches = partial(
            eval_batches,
            self.source,
            make_transform(config),
            config.train.eval_batch_size,
            workers=data.workers,
        )

    def __call__(
        self, net: nn.Module, variables: Any, after_batch: Callable[[], None] | None = None
    ) -> dict[str, float]:
        """Metrics over all of the split, each process reading its share."""
        process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        return evaluate(
            net,
            variables,
            self._batches(**process),
            mesh=self.mesh,
            mean=self.mean,
            std=self.std,
            after_batch=after_batch,
        )

    def images(self, count: int) -> Float[Array, "count height width channels"]:
        """The first images of the split, as a net takes them."""
        rows: list[np.ndarray] = []
        for batch in self._batches(workers=0):
            rows.extend(batch["image"][batch["mask"] > 0])
            if len(rows) >= count:
                break
        if not rows:
            raise RunError("nothing to verify on: the evaluation split has no readable image")
        return to_network_input(jnp.asarray(np.stack(rows[:count])), self.mean, self.std)
