"""Compares all variants with PyTorch: `python -m experiments.studies.family`.

Reports for each model at full size, with BatchNorm scales of both signs and statistics as after
training: counts of both forms, the relative error of fusion, and that of the logits to PyTorch's.
"""

import gc
import importlib.metadata
import importlib.util
import os
import sys
import time
from typing import Any

import jax
import numpy as np

import repvgg_jax as rj
from experiments.reference.rounding import depend_on_images
from experiments.studies.pages import DOCS, write_section
from experiments.sweeps.flags import Parser, path_type, run_command
from repvgg_jax.bench.counting import count_macs, count_parameters
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.interop.pytorch import from_torch, to_torch


def measure(name: str, image_size: int, classes: int, timm: Any) -> dict[str, Any]:
    """Returns the counts of both forms, and max |difference| / max |logits| of each comparison."""
    import torch

    from experiments.reference.torch_models import random_images, randomize
    from experiments.reference.torch_repvgg import twin_of

    net = rj.create(name, num_classes=classes)
    x = random_images(2, image_size)
    twin = randomize(twin_of(net), x)
    variables = from_torch(net, twin.state_dict())
    fused_net, fused_variables = rj.fuse(net, variables)
    row: dict[str, Any] = {
        "model": name,
        "params": count_parameters(variables),
        "params_fused": count_parameters(fused_variables),
        "macs": count_macs(net, variables, image_size),
        "macs_fused": count_macs(fused_net, fused_variables, image_size),
        "fusing": rj.verify(net, variables, x).max_relative_error,
    }
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.jit(net.apply)(variables, x))
        ours_fused = np.asarray(jax.jit(fused_net.apply)(fused_variables, x))
    if not depend_on_images(ours):
        raise RunError(f"{name} has nearly the same logits for both images")
    row["twin"] = difference(twin, x, ours)
    row["twin_fused"] = difference(twin.deploy(), x, ours_fused)
    del twin
    if timm is not None and name in timm.list_models("repvgg*"):
        from timm.utils.model import reparameterize_model

        model = timm.create_model(name, num_classes=classes).eval()
        exported = to_torch(net, variables, "timm")
        model.load_state_dict({key: torch.from_numpy(a) for key, a in exported.items()})
        row["timm"] = difference(model, x, ours)
        row["timm_fused"] = difference(reparameterize_model(model, inplace=True), x, ours_fused)
    return row


def difference(module: Any, x: np.ndarray, ours: np.ndarray) -> float:
    """Returns max |ours - theirs| / max |theirs| of the logits of a PyTorch module."""
    import torch

    with torch.no_grad():
        theirs = module(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the rows as a Markdown table."""
    lines = [
        "| model | params: train form | fused | GMACs: train form | fused | fusing "
        "| PyTorch: train form | fused | timm: train form | fused |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        errors = [
            f"{row[key]:.1e}" if key in row else "-"
            for key in ("fusing", "twin", "twin_fused", "timm", "timm_fused")
        ]
        counts = [f"{row[key]:,}" for key in ("params", "params_fused")]
        counts += [f"{row[key] / 1e9:.3f}" for key in ("macs", "macs_fused")]
        lines.append(f"| {' | '.join([row['model'], *counts, *errors])} |")
    return lines


def import_timm() -> Any:
    """Returns timm if it is installed."""
    if importlib.util.find_spec("timm") is None:
        print("timm is not installed: its columns stay empty", file=sys.stderr)
        return None
    from experiments.reference.torch_models import imported

    return imported("timm")


def versions(*packages: str) -> str:
    """Returns the versions of Python and of those packages that are installed."""
    names = ("jax", "jaxlib", "flax", *packages)
    found = [name for name in names if importlib.util.find_spec(name)]
    listed = [f"{name} {importlib.metadata.version(name)}" for name in found]
    return ", ".join([f"Python {sys.version.split()[0]}", *listed])


def main(arguments: list[str] | None = None) -> None:
    """Measures all models and writes the page."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--out", type=path_type, default=DOCS / "family.md", help="page with the table"
    )
    parser.add_argument("--models", nargs="*", default=rj.list_models("repvgg*"), help="names")
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--classes", type=int, default=1000, help="number of classes")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("torch") is None:
        raise UsageError("torch is not installed: pip install -e '.[torch]'")
    given = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python -m experiments.studies.family", *given])
    timm, rows, start = import_timm(), [], time.perf_counter()
    for name in options.models:
        rows.append(measure(name, options.image_size, options.classes, timm))
        print(table(rows[-1:])[-1], flush=True)
        jax.clear_caches()  # one model at a time: the largest takes gigabytes
        gc.collect()
        # Written after each model, so that an interrupted run keeps its results.
        seconds = time.perf_counter() - start
        setup = f"{seconds / 60:.0f} minutes on {os.cpu_count()} CPU cores"
        lines = [*table(rows), "", f"`{command}`, {setup}; {versions('torch', 'timm')}."]
        write_section(options.out, "table", lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
