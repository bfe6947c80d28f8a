"""MobileOne on ImageNet-2012 with RepVGG's recipe, since its own is not published.

  python main.py --config configs/mobileone.py:s0     (or s1, s2, s3, s4)

Cost: 5.29 M parameters in training and 2.08 M fused for S0, 0.28 G multiply-adds fused; up to
14.95 M, 14.84 M and 2.98 G for S4. Published top-1, with the authors' recipe: 71.4%, 75.9%, 77.4%,
78.1%, 79.4% (their repository). Not trained here.
"""

from ml_collections import ConfigDict

from configs import imagenet
from repvgg_jax import UsageError


def get_config(variant: str = "s0") -> ConfigDict:
    if variant not in ("s0", "s1", "s2", "s3", "s4"):
        raise UsageError(f"unknown variant {variant!r}; choose s0, s1, s2, s3 or s4")
    return imagenet.get_config(f"mobileone_{variant}")
