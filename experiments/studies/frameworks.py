"""Compares every model with torchvision's and timm's: `python -m experiments.studies.frameworks`.

Each gets the random weights of its counterpart there, with BatchNorm scales of both signs and
statistics as after training; the page docs/results/frameworks.md has the counts of parameters and
the errors of the logits. Models that have a row in docs/results/frameworks.json are skipped, so
that the command continues an interrupted run, and later adds the models that are new.
"""

import gc
import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import repvgg_jax as rj
from experiments.reference.rounding import SOUND, depend_on_images, errors, sound
from experiments.studies.family import versions
from experiments.studies.pages import DOCS, write_section
from experiments.sweeps.flags import Parser, path_type, run_command
from repvgg_jax.bench.counting import count_parameters
from repvgg_jax.errors import UsageError
from repvgg_jax.interop.layouts import LAYOUTS
from repvgg_jax.interop.pytorch import from_torch
from repvgg_jax.runtime.compilation import jit_once
from repvgg_jax.runtime.files import read_json, write_json

# Of the package in float32, and of both forms here.
ERRORS = ("error_there", "error", "error_fused")


def models() -> list[str]:
    """Returns the names of all models whose class torchvision or timm has."""
    classes = (*LAYOUTS["torchvision"], *LAYOUTS["timm"])
    return [name for name in rj.list_models() if type(rj.create(name)) in classes]


def measure(name: str, image_size: int) -> dict[str, Any]:
    """Returns package -> parameters and max |difference| / max |logits| of both forms."""
    from experiments.reference.torch_models import (
        counterpart,
        packages_with,
        random_images,
        randomize,
    )

    x = random_images(2, image_size)
    row: dict[str, Any] = {}
    for package in packages_with(name):
        module = randomize(counterpart(name, package), x)
        net = rj.create(name, bn_epsilon=epsilon(module))
        variables = from_torch(net, module.state_dict())
        plain, fused = rj.fuse(net, variables)
        with jax.default_matmul_precision("highest"):
            ours = [np.asarray(jit_once(net.apply)(variables, x))]
            ours.append(np.asarray(jit_once(plain.apply)(fused, x)))
        if not depend_on_images(ours[0]):
            raise UsageError(f"{package}'s {name} has nearly the same logits for all images")
        row[package] = {
            "params": count_parameters(variables),
            "params_there": count(module),
            "params_fused": count_parameters(fused),
            "params_fused_there": fused_count(module),
            **dict(zip(ERRORS, errors(module, x, *ours), strict=True)),
        }
    return row


def epsilon(module: Any) -> float | None:
    """Returns the epsilon of a PyTorch module's BatchNorms, in which the packages differ."""
    from torch.nn import BatchNorm2d

    return next((each.eps for each in module.modules() if isinstance(each, BatchNorm2d)), None)


def count(module: Any) -> int:
    """Returns the number of a PyTorch module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def fused_count(module: Any) -> int | None:
    """Returns the number of parameters after PyTorch folds BatchNorms, in place.

    None if it cannot: torch.fx cannot trace all modules, nor fold BatchNorms of timm's classes.
    """
    from torch.fx.experimental.optimization import fuse

    before = count(module)
    try:
        after = count(fuse(module))
    except Exception:  # torch.fx raises errors of many kinds
        return None
    return after if after != before else None


def table(rows: dict[str, Any]) -> list[str]:
    """Returns the rows as a Markdown table, sorted by name."""
    lines = [
        "| model | package | parameters: here | there | fused: here | there "
        "| error of logits: there | train form | fused |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in sorted(rows.items()):
        for package, found in row.items():
            counts = [
                f"{found[key]:,}" if found[key] else "-"
                for key in ("params", "params_there", "params_fused", "params_fused_there")
            ]
            numbers = [*counts, *(f"{found[key]:.1e}" for key in ERRORS)]
            lines.append(f"| {' | '.join([f'`{name}`', package, *numbers])} |")
    return lines


def page(rows: dict[str, Any]) -> list[str]:
    """Returns the measured section of the page."""
    measured = [row for packages in rows.values() for row in packages.values()]
    found = [[row[key] for key in ERRORS] for row in measured if sound(row[ERRORS[0]])]
    largest = max((max(here) for _, *here in found), default=0.0)
    theirs = max((there for there, *_ in found), default=0.0)
    times = max((max(here) / there for there, *here in found), default=0.0)
    equal = sum(row["params"] == row["params_there"] for row in measured)
    alone = ", ".join(f"`{name}`" for name, packages in sorted(rows.items()) if not packages)
    lines = [
        f"{len(measured)} comparisons of {len(rows)} models; the largest error is {largest:.1e}, "
        f"where the packages' own is up to {theirs:.1e}. No error is more than {times:.1f} times "
        f"the package's own. {equal} counts of parameters are equal. Rows in which the package's "
        f"own error is above {SOUND:.0%} say nothing about errors, and do not count: "
        f"{len(measured) - len(found)}.",
        "",
        *table(rows),
        "",
    ]
    if alone:
        lines += [f"Without a counterpart in either package: {alone}.", ""]
    setup = versions("torch", "torchvision", "timm")
    return [*lines, f"`python -m experiments.studies.frameworks`, on a CPU; {setup}."]


def main(arguments: list[str] | None = None) -> None:
    """Measures the models without a row, and writes the page after each."""
    parser = Parser(__doc__)
    parser.add_argument("--models", nargs="*", default=models(), help="names")
    parser.add_argument("--again", action="store_true", help="also models that have a row")
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--out", type=path_type, default=DOCS, help="folder of the page and rows")
    options = parser.parse_args(arguments)
    for package in ("torch", "torchvision", "timm"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"{package} is not installed: pip install -e '.[torch]'")
    file: Path = options.out / "frameworks.json"
    rows = read_json(file, "restore it from git") if file.exists() else {}
    failed = {}
    for name in options.models:
        if name in rows and not options.again:
            continue
        try:
            rows[name] = measure(name, options.image_size)
        except UsageError as error:
            failed[name] = f"{name}: {error}"
            print(failed[name], file=sys.stderr, flush=True)
            continue
        print(*table({name: rows[name]})[2:], sep="\n", flush=True)
        # Written after each model, so that an interrupted run keeps its results.
        write_json(file, rows)
        write_section(options.out / "frameworks.md", "table", page(rows))
        jax.clear_caches()  # one model at a time: the largest takes gigabytes
        gc.collect()
    if failed:
        raise UsageError(f"{len(failed)} models were not compared: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
