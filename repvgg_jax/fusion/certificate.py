"""The certificate saved with fused weights: their verification report and checksums."""

import dataclasses
import hashlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import jax
import numpy as np

from repvgg_jax.errors import UsageError
from repvgg_jax.fusion.verify import FusionReport

FILE = "fusion.json"


def checksums(variables: Mapping[str, Any], first: Iterable[str] = ()) -> dict[str, str]:
    """Returns the SHA-256 of each top-level module's names, types, shapes and bytes of weights.

    The modules in `first` come first, in that order; the others follow in the order of the tree.
    """
    sums = {}
    params = variables["params"]
    for block in dict.fromkeys([*(name for name in first if name in params), *params]):
        sums[block] = checksum(params[block])
    return sums


def checksum(tree: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a tree's names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for path, leaf in sorted(jax.tree.leaves_with_path(tree), key=lambda pair: str(pair[0])):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def certify(
    report: FusionReport,
    fused: Mapping[str, Any],
    *,
    images: int,
    image_kind: str,
    step: int,
    config_hash: str,
) -> dict[str, Any]:
    """Returns the certificate, a JSON value, of variables that were verified on some images."""
    return {
        "config_hash": config_hash,
        "step": step,
        "images": images,
        "image_kind": image_kind,
        "max_relative_error": report.max_relative_error,
        "worst_block": report.worst_block,
        "exact": dataclasses.asdict(report.exact),
        "deployed": dataclasses.asdict(report.deployed),
        "blocks": report.blocks,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
        },
        "device": jax.devices()[0].device_kind,
        "sha256": checksums(fused, first=report.blocks),
    }


def check(certificate: Any, fused: Mapping[str, Any], where: str) -> None:
    """Raises UsageError with the first block whose weights differ from the certified ones."""
    certified = certificate.get("sha256") if isinstance(certificate, Mapping) else None
    if not isinstance(certified, Mapping):
        raise UsageError(f"{where}: {FILE} has no checksums; write it again with `--mode=fuse`")
    found = checksums(fused)
    for block in [*certified, *(name for name in found if name not in certified)]:
        if certified.get(block) != found.get(block):
            raise UsageError(
                f"{where}: the weights of {block} differ from the verified ones; "
                "fuse the checkpoint again with `--mode=fuse`"
            )
