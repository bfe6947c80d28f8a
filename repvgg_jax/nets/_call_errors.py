"""Explanations of frequent errors in calls of a net, which Flax reports in its own terms."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn

from repvgg_jax.errors import SmallImageError, UsageError, described

_GUIDE = "see docs/guides/coming_from_pytorch.md"
_SMALL = (1, 3, 4)  # channels of gray, RGB and RGBA images


def check_variables(variables: Any, call: str) -> None:
    """Raises UsageError for variables that are not a mapping; `call` is the call to be made."""
    if not isinstance(variables, Mapping):
        raise UsageError(
            f"{call}: the variables are {described(variables)}; rj.init and rj.load return "
            'variables, {"params": ..., "batch_stats": ...}'
        )


def check_images(images: Any) -> None:
    """Raises UsageError unless images are an array with a batch axis and look normalized."""
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    if shape is None or not hasattr(dtype, "kind"):  # PyTorch's types have none
        several = isinstance(images, list | tuple) or shape is not None
        hint = "; jnp.asarray(images) makes one" if several else ""
        raise UsageError(
            f"images are {described(images)}; a net takes an array [batch, height, width, 3]{hint}"
        )
    if len(shape) != 4:
        hint = "; images[None] adds the batch axis" if len(shape) == 3 else ""
        raise UsageError(f"{_images_of(shape)}; a net takes [batch, height, width, 3]{hint}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UsageError(
            f"images are {jnp.dtype(dtype).name}; a net takes normalized ones, "
            "(images / 255 - mean) / std: rj.preprocess returns those of a run's evaluation"
        )


def check_layout(images: Any) -> None:
    """Raises UsageError for RGB images in NCHW, for which Flax would initialize another net."""
    shape = getattr(images, "shape", ())
    if len(shape) == 4 and shape[1] == 3 and shape[-1] not in _SMALL:
        raise UsageError(_channels_first(shape))


@contextmanager
def naming_the_smallest(net: nn.Module, images: Any) -> Iterator[None]:
    """Raises UsageError with the side of the smallest images that a net takes, if these are not."""
    try:
        yield
    except SmallImageError as error:
        height, width, channels = images.shape[1:]
        side = smallest_side(net, channels)
        raise UsageError(
            f"images of {height}x{width} pixels are too small for this {type(net).__name__}, which "
            f"takes {side}x{side} or larger ({error})"
        ) from None


def smallest_side(net: nn.Module, channels: int = 3) -> int:
    """Returns the side of the smallest square images that a net takes, without computing any.

    Example:
      >>> smallest_side(create("vgg16"))
      32
    """

    def fits(side: int) -> bool:
        images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
        # Flax's method, since the net's own calls this function.
        call = partial(nn.Module.init_with_output, net)
        try:
            jax.eval_shape(call, jax.random.key(0), images)
        except SmallImageError:
            return False
        return True

    largest = 1
    while largest < 4096 and not fits(largest):
        largest *= 2
    return bisect_left(range(largest), True, lo=largest // 2 + 1, key=fits)


@contextmanager
def explained(images: Any, variables: Mapping[str, Any], block: str) -> Iterator[None]:
    """Raises UsageError with cause and remedy for Flax's errors in a call of a net of `block`s."""
    try:
        yield
    except errors.ScopeParamShapeError as error:
        shape = getattr(images, "shape", ())
        if len(shape) == 4 and shape[-1] != 3:
            raise UsageError(_wrong_channels(shape)) from None
        bias = variables["params"].get("head", {}).get("bias")
        hint = f"; num_classes={bias.size} fits them" if "/head" in str(error) else ""
        raise UsageError(
            f"the variables are not those of this net: {_cause(error)}{hint}"
        ) from None
    except errors.ModifyScopeVariableError:
        raise UsageError(
            "train=True updates the BatchNorm statistics, and apply must return them: logits, "
            f'updated = net.apply(..., train=True, mutable=["batch_stats"]); {_GUIDE}'
        ) from None
    except errors.InvalidRngError:
        raise UsageError(
            "train=True drops outputs of this net at random: net.apply(..., train=True, "
            'rngs={"dropout": key})'
        ) from None
    except errors.ScopeCollectionNotFound:
        missing = [name for name in ("params", "batch_stats") if not variables.get(name)]
        raise UsageError(
            f"the variables have no {' and no '.join(missing)}; pass both, as rj.init and rj.load "
            'return them: {"params": ..., "batch_stats": ...}'
        ) from None
    except errors.ScopeParamNotFoundError as error:
        raise UsageError(
            f"the variables are not those of this net, whose block is {block!r}: {_cause(error)}"
        ) from None


def _cause(error: errors.FlaxError) -> str:
    """Returns Flax's message without the address of its page."""
    return str(error).split(" (http")[0].removesuffix(".")


def _wrong_channels(shape: tuple[int, ...]) -> str:
    found = shape[-1]
    if shape[1] in _SMALL and found not in _SMALL:
        return _channels_first(shape)
    remedy = f"rj.init(net, key, channels={found}) makes variables for {found}"
    if found == 1:
        remedy = f"jnp.repeat(images, 3, axis=-1) makes gray images RGB, and {remedy}"
    if found == 4:
        remedy = f"images[..., :3] drops the transparency of RGBA, and {remedy}"
    return f"{_images_of(shape)}, but the variables are for other channels (3 for RGB); {remedy}"


def _channels_first(shape: tuple[int, ...]) -> str:
    return (
        f"{_images_of(shape)}, which looks like NCHW; this library takes NHWC: "
        f"images.transpose(0, 2, 3, 1); {_GUIDE}"
    )


def _images_of(shape: tuple[int, ...]) -> str:
    return f"images have shape ({', '.join(map(str, shape))})"
