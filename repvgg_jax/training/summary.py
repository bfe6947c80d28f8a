"""The summary table printed at the end of a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from repvgg_jax.config.build import StepOptions
from repvgg_jax.training.environment import describe
from repvgg_jax.training.monitor import clock


def training_loss_terms(options: StepOptions) -> str:
    """Returns the terms that only the training loss includes; empty if there are none."""
    terms = {
        "label smoothing": options.label_smoothing,
        "mixup": options.mixup,
        "cutmix": options.cutmix,
    }
    return ", ".join(f"{name} {value:g}" for name, value in terms.items() if value)


def summary(report: Mapping[str, Any], fused_step: int | None = None) -> str:
    """Returns the summary table of a run, from the content of `report.json`.

    Missing fields are omitted. Fractions in the report are shown in percent.

    Args:
      report: the content of `report.json`.
      fused_step: step of the run's fused weights; that of the report by default.
    """
    table = (
        ("top1", "top-1", "{:.2%}".format),
        ("top5", "top-5", "{:.2%}".format),
        ("loss", "loss", "{:.4f}".format),
        ("params", "parameters", "{:,}".format),
        ("macs", "multiply-adds", _scaled),
    )
    names = ("model",) if "environment" in report else ("model", "device")
    title = " on ".join(str(report[name]) for name in names if name in report)
    lines = [title] if len(title) > 40 else []
    title = "" if lines else title
    width = max(36, len(title) + 2)
    lines.append(f"{title:<{width}}{'train form':>15}{'fused':>13}")
    for name, label, text in table:
        if name in report:
            cells = [report[name].get(form) for form in ("train_form", "fused")]
            left, right = ("-" if cell is None else text(cell) for cell in cells)
            lines.append(f"{'  ' + label:<{width}}{left:>15}{right:>13}")
    if "fusion" in report:
        lines += _fusion(report["fusion"])
    lines += _steps(report, fused_step)
    if terms := report.get("training_loss"):
        lines.append(f"the training loss includes {terms}; the loss above does not")
    if ending := "; ".join([*_counts(report), *_times(report)]):
        lines.append(ending)
    for environment in [*report.get("earlier_environments", []), report.get("environment")]:
        if environment is not None:
            since = f" from step {environment['from_step']}" if environment["from_step"] else ""
            lines.append(f"computed{since} on {describe(environment)}")
    return "\n".join(lines)


def _fusion(fusion: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line on the fusion, and one on the rounding errors of deployment if there are any.

    Reports of earlier versions lack the types and the figures of deployment.
    """

    def agreement(figures: Mapping[str, float]) -> str:
        share, divergence = figures["top1_agreement"], figures["logit_kl"]
        return f"top-1 agreement {share:.2%}, logit KL {divergence:.1e}"

    error = fusion["max_relative_error"]
    dtype = fusion.get("dtype", "float32")
    yield f"fusion in {dtype}: max relative error {error:.1e}, {agreement(fusion)}"
    deployed = fusion.get("deployed")
    if deployed and any(deployed[name] != fusion[name] for name in ("top1_agreement", "logit_kl")):
        error = deployed["relative_error"]
        yield (
            f"fusion as deployed ({deployed['dtype']}): relative error {error:.1e}, "
            f"{agreement(deployed)}"
        )


def _steps(report: Mapping[str, Any], fused_step: int | None) -> Iterator[str]:
    """Yields lines if the best evaluation or the fused weights are not of the report's step."""
    if "steps" not in report:
        return
    last, best = report["steps"], report.get("best")
    fused_again = fused_step not in (None, last)
    # The report's own step may have been evaluated again, by another library.
    earlier = best is not None and best["step"] != last
    better = earlier and best["top1"] > report["top1"]["train_form"]
    if not (better or fused_again):
        return
    line = ""
    if better:
        line = (
            f"best top-1 {best['top1']:.2%} at step {best['step']:,}, chosen on the evaluation "
            "images; "
        )
    forms = "opens the train form of that step, and with fused=True its fused form"
    if fused_again:
        weights = f"the fused weights are of step {fused_step:,}"
        yield f"{line}the report describes the last step, {last:,}; {weights}"
        yield f"rj.load(workdir, step={fused_step}) {forms}"
    elif "fusion" in report:
        step = best["step"]
        yield f"{line}the report and the fused weights are those of the last step, {last:,}"
        yield f"--mode=fuse --step={step} fuses the best; rj.load(workdir, step={step}) {forms}"
    else:
        yield f"{line}the report describes the last step, {last:,}"


def _counts(report: Mapping[str, Any]) -> Iterator[str]:
    if "eval_count" in report:
        yield f"evaluated {report['eval_count']:,} images"
    if any(report.get("skipped", {}).values()):
        counts = ", ".join(f"{count:,} of {split}" for split, count in report["skipped"].items())
        yield f"skipped as corrupt: {counts}"
    if "steps" in report:
        rate = report.get("examples_per_second")
        speed = f" at {rate:,.0f} images/s" if rate else ""
        yield f"{report['steps']:,} steps{speed}"
    if (waiting := report.get("waiting_for_data")) is not None:
        yield f"{waiting:.1%} of the time waiting for data"


def _times(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields the duration of the run, and of its last start if there are several."""
    first = report.get("first_step_seconds")
    to_first = "" if first is None else f" (first step after {_duration(first)})"
    if report.get("starts", 1) > 1:
        yield f"{_duration(report['start_seconds'])} in the last start{to_first}"
        yield f"{_duration(report['wall_seconds'])} over all {report['starts']} starts"
    elif "wall_seconds" in report:
        yield f"{_duration(report['wall_seconds'])} in all{to_first}"
    if "config_hash" in report:
        yield f"config {report['config_hash']}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else clock(seconds)


def _scaled(count: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3f} {unit}"
    return f"{count:,}"
