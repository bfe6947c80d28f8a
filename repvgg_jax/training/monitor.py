"""Shows and records the metrics of a run: progress, `metrics.jsonl`, TensorBoard and curves."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from absl import logging

from repvgg_jax.errors import RunError, one_line
from repvgg_jax.runtime.files import replace_text
from repvgg_jax.runtime.messages import colored
from repvgg_jax.training.curves import draw_curves
from repvgg_jax.training.metrics import METRICS_FILE, read_metrics
from repvgg_jax.training.pace import Pace
from repvgg_jax.training.scalars import open_scalars

# Longest silence between lines where there is no bar, if steps are shorter.
QUIET_SECONDS = 10


class Monitor:
    """A context manager that shows and records the metrics of one run.

    Rows are `{"step", "kind": "train" | "eval", "seconds", **metrics}`, one JSON object per line.
    `seconds` is the wall time of the run, summed over restarts. Training rows also contain
    `examples_per_second` once it is known. Values that are not finite are written as null. Rows
    after `start_step`, left by an interrupted process, are removed, so that no step appears twice.

    Args:
      workdir: folder for `metrics.jsonl`, `tensorboard/` and `curves.png`; created if missing.
      total_steps: the last step of training.
      batch_size: images per step over all devices.
      start_step: the step that the run resumes from.
      stream: output for progress, a bar on terminals and lines elsewhere; `sys.stderr` by default.
      primary: False on all processes except the first; they write and show nothing.
      began: `time.monotonic()` when this start of the run began; now by default.
      seconds_before: duration of all earlier starts of the run.

    Raises:
      UsageError: if an existing `metrics.jsonl` is damaged before its last line.
      RunError: from `train` and `evaluate`, if a row cannot be written.

    Attributes:
      step: the last step computed.
      evaluated: True if `metrics.jsonl` has an evaluation of `start_step`; False if not `primary`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        total_steps: int,
        batch_size: int,
        start_step: int = 0,
        stream: TextIO | None = None,
        primary: bool = True,
        began: float | None = None,
        seconds_before: float = 0.0,
    ) -> None:
        self._workdir = Path(workdir)
        self._total_steps = total_steps
        self._stream = sys.stderr if stream is None else stream
        self._open = primary
        self._seconds_before = seconds_before
        self.step = start_step
        self.evaluated = False
        self._best = -math.inf  # top-1 of the evaluations
        self._bar = None
        if primary:
            self._open_files(start_step)
            if self._stream.isatty():
                self._bar = _progress_bar(total_steps, start_step, self._stream)
        now = time.monotonic()
        self._shown = now
        self._started = now if began is None else began
        self._pace = Pace(start_step, batch_size, now)

    def _open_files(self, start_step: int) -> None:
        self._workdir.mkdir(parents=True, exist_ok=True)
        path = self._workdir / METRICS_FILE
        if path.exists():
            written = read_metrics(path)
            rows = [row for row in written if row["step"] <= start_step]
            evaluations = [row for row in rows if row["kind"] == "eval"]
            self.evaluated = any(row["step"] == start_step for row in evaluations)
            self._best = max((row.get("top1") or 0.0 for row in evaluations), default=-math.inf)
            replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a", encoding="utf-8")
        self._scalars = open_scalars(self._workdir, start_step)

    @property
    def examples_per_second(self) -> float:
        """Training images per second, without evaluation and, if possible, compilation.

        The interval before the first call of `train` includes the compilation and counts only if
        there is no other interval. The value is 0.0 before any interval ends.
        """
        return self._pace.overall()

    @property
    def seconds(self) -> float:
        """Duration of the run in seconds, over all starts."""
        return self._seconds_before + time.monotonic() - self._started

    def show(self, line: str) -> None:
        """Shows a line of text, above the bar if there is one."""
        if not self._open:
            return
        self._shown = time.monotonic()
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.write(line, file=self._stream)

    def advance(self, step: int) -> None:
        """Sets the last step computed, and moves the bar to it, if there is one."""
        self.step = step
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def between(self, step: int, loss: float) -> None:
        """Shows a step that `train` does not record, if nothing was shown for `QUIET_SECONDS`."""
        if self._bar is None and time.monotonic() - self._shown >= QUIET_SECONDS:
            left = self._pace.seconds_for(self._total_steps - step)
            time_left = [] if left is None else [f"{clock(left)} left"]
            self.show("  ".join([self._position(step), *_formatted({"loss": loss}), *time_left]))

    def announce(self, text: str) -> None:
        """Shows beside the bar, if there is one, what the run does until the next step."""
        if self._bar is not None:
            self._bar.set_description_str(text)

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records and shows the metrics of training step `step`, counted from 1."""
        recent = self._pace.advance(step, time.monotonic())
        if not self._open:
            return
        rate = {} if recent is None else {"examples_per_second": recent}
        self._record(step, "train", metrics | rate)
        left = f"{clock(self._pace.seconds_for(self._total_steps - step))} left"
        speed = [] if recent is None else [f"{recent:,.0f} images/s"]
        if self._bar is None:
            self.show("  ".join([self._position(step), *_formatted(metrics), *speed, left]))
        else:
            loss = _formatted({"loss": metrics["loss"]}) if "loss" in metrics else []
            self._bar.n = max(step, self._bar.n)
            self._bar.set_description_str("  ".join([*loss, *speed, left]), refresh=False)
            self._bar.refresh()

    def evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records and shows an evaluation after `step` steps.

        The time since the last call is excluded from `examples_per_second`. Call `train` right
        before an evaluation to include the steps before it.
        """
        metrics = {name: float(value) for name, value in metrics.items()}
        if self._open:
            self._record(step, "eval", metrics)
            shown = {name: value for name, value in metrics.items() if name != "count"}
            line = "  ".join([self._position(step), "evaluation", *_formatted(shown)])
            # Of equal evaluations the latest counts, as in the report.
            if (top1 := metrics.get("top1", math.nan)) >= self._best:
                self._best = top1
                line = colored(f"{line}  best so far", "green", self._stream)
            self.announce("")
            self.show(line)
        self.restart(step)

    def restart(self, step: int) -> None:
        """Excludes the time until now, at which `step` steps are complete, from the speed."""
        self._pace.restart(step, time.monotonic())

    def close(self) -> None:
        """Closes the files and draws `curves.png`; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        if self._bar is not None:
            self._bar.close()
        for action in (self._file.close, self._scalars.close, self._draw):
            try:
                action()
            except OSError as error:  # a full disk must not hide the error that ended the run
                logging.warning("%s: %s", self._workdir, error)

    def _draw(self) -> None:
        if rows := read_metrics(self._workdir / METRICS_FILE):
            draw_curves(rows, self._workdir / "curves.png")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _record(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        finite = {name: v if math.isfinite(v) else None for name, v in metrics.items()}
        row = {"step": step, "kind": kind, "seconds": round(self.seconds, 3), **finite}
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(
                f"{self._workdir / METRICS_FILE} cannot be written ({one_line(error)}); "
                "rerun the same command to resume from the last checkpoint, if any"
            ) from error
        for name, value in metrics.items():
            self._scalars.add_scalar(f"{kind}/{name}", value, step)

    def _position(self, step: int) -> str:
        return f"step {step:{len(str(self._total_steps)) + 1}d}/{self._total_steps}"


def _progress_bar(total_steps: int, start_step: int, stream: TextIO) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total_steps,
        initial=start_step,
        file=stream,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}  {desc}",
    )


def _formatted(metrics: Mapping[str, float]) -> Iterable[str]:
    short = {"learning_rate": "lr"}
    fixed = ("loss", "top1", "top5")  # first, and of the same width on every line
    first = [name for name in fixed if name in metrics]
    for name, value in {**dict.fromkeys(first), **metrics}.items():
        if name in fixed:
            yield f"{name} {value:.3f}"
        else:
            whole = value.is_integer() and abs(value) < 1e15
            yield f"{short.get(name, name)} {f'{value:,.0f}' if whole else f'{value:.3g}'}"


def clock(seconds: float | None) -> str:
    """Returns a duration as mm:ss, or h:mm:ss from an hour; --:-- for None."""
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
