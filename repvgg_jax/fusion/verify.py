"""Verification that the fused form computes the same function as the train form."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from repvgg_jax.errors import UsageError, described
from repvgg_jax.fusion.fuse import fuse
from repvgg_jax.nets import Net, Variables, check_arguments, check_images
from repvgg_jax.ops.batch_norm import accumulation_dtype
from repvgg_jax.runtime.compilation import jit_once
from repvgg_jax.runtime.devices import target


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The agreement between the logits of the fused form and the train form on the same images.

    Attributes:
      relative_error: max |difference| / max |train form's logits|.
      top1_agreement: fraction of images for which both forms predict the same class.
      logit_kl: mean KL divergence of the fused form's softmax from the train form's, in nats.
    """

    relative_error: float
    top1_agreement: float
    logit_kl: float


@dataclasses.dataclass(frozen=True)
class FusionReport:
    """The result of `verify`.

    Attributes:
      blocks: block name -> relative error of the fused block on the train form's activations.
      exact: agreement of the logits in float32 (or the net's compute type, if wider) at highest
        precision, which verifies the fusion.
      deployed: agreement of the logits in the net's compute type at the platform's default
        precision, which includes the rounding errors of deployment.
    """

    blocks: dict[str, float]
    exact: Agreement
    deployed: Agreement

    @property
    def max_relative_error(self) -> float:
        """The largest relative error of all blocks and the logits at highest precision."""
        return max([*self.blocks.values(), self.exact.relative_error])

    @property
    def worst_block(self) -> str:
        """The block with the largest relative error; "none" for a net without blocks."""
        return max(self.blocks, key=self.blocks.__getitem__, default="none")

    @property
    def top1_agreement(self) -> float:
        """The fraction of images with equal predictions of both forms, at highest precision."""
        return self.exact.top1_agreement

    @property
    def logit_kl(self) -> float:
        """The mean KL divergence of the logits at highest precision, in nats."""
        return self.exact.logit_kl

    def __str__(self) -> str:
        width = max(map(len, [*self.blocks, "deployed"]))
        lines = [f"{name:<{width}}  {error:.1e}" for name, error in self.blocks.items()]
        for label, agreement in (("exact", self.exact), ("deployed", self.deployed)):
            lines.append(
                f"{label:<{width}}  {agreement.relative_error:.1e}  "
                f"top-1 agreement {agreement.top1_agreement:.2%}  KL {agreement.logit_kl:.1e}"
            )
        return "\n".join(lines)


def verify(
    net: Net,
    variables: Variables,
    images: Float[Array, "batch height width channels"],
    fused: tuple[Net, Variables] | None = None,
) -> FusionReport:
    """Compares the fused form with the train form, block by block and end to end.

    Each fused block f is compared with its train form t on the train form's input x of the block,
    so that errors do not propagate to later blocks. The relative error is
    max |f(x) - t(x)| / max |t(x)|, or infinite if either output is not finite.

    Args:
      net: the train form.
      variables: its variables.
      images: normalized images.
      fused: the fused net and its variables; by default, the result of `fuse`.

    Raises:
      UsageError: if an argument has the wrong type or images are not finite, or as for `fuse`.

    Examples:
      >>> net = create("repvgg_a0", num_classes=10, depths=(1, 1), widths=(8, 8), strides=(2, 2))
      >>> variables = randomize(abstract(net), jax.random.key(0))
      >>> images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
      >>> verify(net, variables, images).max_relative_error < 1e-5
      True
    """
    call = "rj.verify(net, variables, images)"
    check_arguments(net, variables, call)
    check_images(images)
    if not len(images):
        raise UsageError(f"{call}: images are an empty batch; pass one image or more")
    if not jnp.isfinite(images).all():
        raise UsageError(f"{call}: images have values that are not finite")
    if not isinstance(fused, tuple | None):
        raise UsageError(f"{call}: fused is {described(fused)}; pass the pair from rj.fuse")
    fused_net, fused_variables = fused or fuse(net, variables)
    check_arguments(fused_net, fused_variables, f"{call}, in the pair fused")
    wide = accumulation_dtype(net.dtype)
    with jax.default_matmul_precision("highest"):
        blocks, exact = _compare_forms(
            net.clone(dtype=wide), fused_net.clone(dtype=wide), variables, fused_variables, images
        )
    deployed = exact
    if (
        jnp.dtype(net.dtype) != wide or not target().is_cpu
    ):  # CPUs always multiply at full precision
        _, deployed = _compare_forms(net, fused_net, variables, fused_variables, images)
    blocks, exact, deployed = jax.tree.map(float, (blocks, exact, deployed))
    ordered = {spec.name: blocks[spec.name] for spec in net.plan()}
    return FusionReport(ordered, Agreement(**exact), Agreement(**deployed))


@partial(jit_once, static_argnums=(0, 1))
def _compare_forms(
    net: Net, fused_net: Net, variables: Variables, fused_variables: Variables, images: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns the relative error of each block, and the agreement of the logits."""
    blocks = fused_net.blocks()
    errors: dict[str, Array] = {}

    def compare_block(call, args, kwargs, context):
        output = call(*args, **kwargs)
        name = "/".join(context.module.path)
        if name in blocks and context.method_name == "__call__":
            fused = blocks[name].apply({"params": fused_variables["params"][name]}, args[0])
            errors[name] = relative_error(output, fused)
        return output

    with nn.intercept_methods(compare_block):
        # With mutable intermediates, a fused block returns its output before the ReLU.
        expected, _ = net.apply(variables, images, train=False, mutable=["intermediates"])
    got = fused_net.apply(fused_variables, images, train=False)
    log_p, log_q = jax.nn.log_softmax(expected), jax.nn.log_softmax(got)
    agreement = {
        "relative_error": relative_error(expected, got),
        "top1_agreement": (expected.argmax(-1) == got.argmax(-1)).mean(),
        # Rounding can make the divergence negative.
        "logit_kl": jnp.maximum((jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean(), 0.0),
    }
    return errors, agreement


def relative_error(
    expected: Float[Array, "*shape"], got: Float[Array, "*shape"]
) -> Float[Array, ""]:
    """Returns max |got - expected| / max |expected|, or infinity if either is not finite."""
    scale = jnp.maximum(jnp.abs(expected).max(), jnp.finfo(expected.dtype).tiny)
    error = jnp.abs(got - expected).max() / scale
    return jnp.where(jnp.isfinite(error), error, jnp.inf)
