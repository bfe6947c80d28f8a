"""The summary table printed at the end of a run."""

from collections.abc import Mapping
from typing import Any

from repvgg_jax.training.environment import describe
from repvgg_jax.training.monitor import clock


def summary(report: Mapping[str, Any]) -> str:
    """Returns the summary table of a run, from the content of `report.json`.

    Missing fields are omitted. Fractions in the report are shown in percent.
    """
    table = (
        ("top1", "top-1", "{:.2%}".format),
        ("top5", "top-5", "{:.2%}".format),
        ("loss", "loss", "{:.4f}".format),
        ("params", "parameters", "{:,}".format),
        ("macs", "multiply-adds", _scaled),
    )
    title = " on ".join(str(report[name]) for name in ("model", "device") if name in report)
    width = max(36, len(title) + 2)
    lines = [f"{title:<{width}}{'train form':>15}{'fused':>13}"]
    for name, label, text in table:
        if name in report:
            cells = [report[name].get(form) for form in ("train_form", "fused")]
            left, right = ("-" if cell is None else text(cell) for cell in cells)
            lines.append(f"{'  ' + label:<{width}}{left:>15}{right:>13}")
    if "fusion" in report:
        fusion = report["fusion"]
        lines.append(
            f"fusion: max relative error {fusion['max_relative_error']:.1e}, "
            f"top-1 agreement {fusion['top1_agreement']:.2%}, logit KL {fusion['logit_kl']:.1e}"
        )
    ending = []
    if "eval_count" in report:
        ending.append(f"evaluated {report['eval_count']:,} images")
    if any(report.get("skipped", {}).values()):
        counts = ", ".join(f"{count:,} of {split}" for split, count in report["skipped"].items())
        ending.append(f"skipped as corrupt: {counts}")
    if "steps" in report:
        rate = report.get("examples_per_second")
        speed = f" at {rate:,.0f} images/s" if rate else ""
        ending.append(f"{report['steps']:,} steps{speed}")
    if (waiting := report.get("waiting_for_data")) is not None:
        ending.append(f"{waiting:.1%} of the time waiting for data")
    if (first := report.get("first_step_seconds")) is not None:
        ending.append(f"first step after {first:.1f} s")
    if "wall_seconds" in report:
        wall = report["wall_seconds"]
        duration = f"{wall:.1f} s" if wall < 120 else clock(wall)
        ending.append(f"{duration} in all")
    if "config_hash" in report:
        ending.append(f"config {report['config_hash']}")
    if ending:
        lines.append("; ".join(ending))
    for environment in [*report.get("earlier_environments", []), report.get("environment")]:
        if environment is not None:
            since = f" from step {environment['from_step']}" if environment["from_step"] else ""
            lines.append(f"computed{since} on {describe(environment)}")
    return "\n".join(lines)


def _scaled(count: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3f} {unit}"
    return f"{count:,}"
