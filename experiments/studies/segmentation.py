"""Trains a RepVGG backbone under a pyramid-pooling head, and fuses the backbone only.

  python -m experiments.studies.segmentation [--steps=400] [--fast]

The images are generated: discs and squares of random colors on noise, with exact masks. Training
takes a minute on two CPU cores. The head is that of PSPNet (arXiv 1612.01105,
section 3.2); the backbone keeps an output stride of 8 by dilation (arXiv 2101.03697, section 4.4;
--fast dilates only the last five layers).
"""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array

import repvgg_jax as rj
from experiments.sweeps.flags import Parser, run_command
from repvgg_jax.layers.conv import Conv
from repvgg_jax.layers.norm import BatchNorm

CLASSES = ("background", "disc", "square")
BINS = (1, 2, 3, 6)


def shapes(rng: np.random.Generator, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images float32 [count, size, size, 3] and masks int32 [count, size, size]."""
    images = rng.normal(0, 0.5, (count, size, size, 3)).astype(np.float32)
    masks = np.zeros((count, size, size), np.int32)
    y, x = np.mgrid[:size, :size]
    for image, mask in zip(images, masks, strict=True):
        for label in rng.permutation([1, 2]):
            row, column = rng.uniform(0.2, 0.8, 2) * size
            radius = rng.uniform(0.12, 0.25) * size
            distance = np.hypot(y - row, x - column)
            if label == 2:
                distance = np.maximum(abs(y - row), abs(x - column))
            inside = distance < radius
            mask[inside] = label
            image[inside] += rng.uniform(-1.5, 1.5, 3)
    return images, masks


def pool(x: Array, bins: int) -> Array:
    """Returns the mean over bins x bins parts, [batch, h, w, c] -> [batch, bins, bins, c].

    Part i covers rows floor(i h / bins) up to ceil((i + 1) h / bins), so that every pixel counts
    even if bins does not divide the size.
    """

    def weights(size: int) -> np.ndarray:
        index = np.arange(bins)[:, None]
        start, stop = index * size // bins, -(-(index + 1) * size // bins)
        inside = (np.arange(size) >= start) & (np.arange(size) < stop)
        return (inside / inside.sum(1, keepdims=True)).astype(np.float32)

    return jnp.einsum("ih,jw,bhwc->bijc", weights(x.shape[1]), weights(x.shape[2]), x)


class PyramidHead(nn.Module):
    """Pyramid pooling and a classifier: [batch, h, w, channels] -> [batch, *size, num_classes]."""

    features: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int], train: bool = False) -> Array:
        """Returns logits of every pixel."""

        def unit(y: Array, width: int, kernel: int, name: str) -> Array:
            y = Conv(width, kernel, name=f"{name}_conv")(y)
            return nn.relu(BatchNorm(train, name=f"{name}_bn")(y))

        branches = [x]
        for bins in BINS:
            y = unit(pool(x, bins), self.features // len(BINS), 1, f"pool{bins}")
            branches.append(jax.image.resize(y, (*x.shape[:3], y.shape[-1]), "bilinear"))
        y = unit(jnp.concatenate(branches, -1), self.features, 3, "merge")
        logits = Conv(self.num_classes, 1, use_bias=True, name="classifier")(y)
        return jax.image.resize(logits, (len(x), *size, self.num_classes), "bilinear")


def mean_iou(masks: np.ndarray, predictions: np.ndarray) -> float:
    """Returns the mean over classes of intersection / union, from one confusion matrix."""
    n = len(CLASSES)
    confusion = np.bincount(masks.ravel() * n + predictions.ravel(), minlength=n * n).reshape(n, n)
    hits = np.diag(confusion)
    return float(np.mean(hits / (confusion.sum(0) + confusion.sum(1) - hits)))


def run(steps: int = 400, fast: bool = False, size: int = 48, batch: int = 16) -> dict[str, float]:
    """Trains, fuses the backbone, and returns both forms' mIoU and their pixel agreement."""
    net = rj.create(
        "repvgg_a0",
        num_classes=1,
        depths=(1, 1, 2, 3, 1),
        widths=(16, 16, 24, 32, 48),
        output_stride=8,
        dilated_layers=5 if fast else None,
    )
    head = PyramidHead(32, len(CLASSES))
    backbone = rj.init(net, jax.random.key(0), size)
    channels = net.feature_info()[-1].channels
    top = jax.jit(partial(head.init, size=(size, size)))(
        jax.random.key(1), jnp.zeros((1, size // 8, size // 8, channels))
    )
    tx = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    params = {"backbone": backbone["params"], "head": top["params"]}
    stats = {"backbone": backbone["batch_stats"], "head": top["batch_stats"]}
    opt_state = tx.init(params)

    @jax.jit
    def step(params: Any, stats: Any, opt_state: Any, images: Array, masks: Array) -> Any:
        def loss_fn(params: Any) -> tuple[Array, Any]:
            variables = {"params": params["backbone"], "batch_stats": stats["backbone"]}
            maps, backbone_stats = net.features(variables, images, train=True)
            logits, updated = head.apply(
                {"params": params["head"], "batch_stats": stats["head"]},
                maps[-1],
                (size, size),
                train=True,
                mutable=["batch_stats"],
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, masks).mean()
            return loss, {"backbone": backbone_stats, "head": updated["batch_stats"]}

        grads, stats = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        params, stats, opt_state = step(params, stats, opt_state, *shapes(rng, batch, size))

    train_form = (net, {"params": params["backbone"], "batch_stats": stats["backbone"]})
    head_variables = {"params": params["head"], "batch_stats": stats["head"]}
    images, masks = shapes(np.random.default_rng(1), 64, size)

    def predict(net: nn.Module, variables: Any) -> np.ndarray:
        maps, _ = net.features(variables, images)
        return np.asarray(head.apply(head_variables, maps[-1], (size, size)).argmax(-1))

    before, after = predict(*train_form), predict(*rj.fuse(*train_form))
    return {
        "miou_train_form": mean_iou(masks, before),
        "miou_fused": mean_iou(masks, after),
        "pixel_agreement": float((before == after).mean()),
    }


def main() -> None:
    """Prints the result of `run`."""
    parser = Parser(__doc__)
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("--fast", action="store_true", help="dilate only the last five layers")
    for name, value in run(**vars(parser.parse_args())).items():
        print(f"{name:<18} {value:.4f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
