"""Tests of the monitor: its files after a crash, and its output."""

import io
import json
import re
import struct
from types import SimpleNamespace

import pytest

from repvgg_jax.errors import UsageError
from repvgg_jax.runtime import files
from repvgg_jax.runtime.files import write_json
from repvgg_jax.training import curves, monitor
from repvgg_jax.training.curves import draw_curves
from repvgg_jax.training.metrics import read_metrics
from repvgg_jax.training.monitor import Monitor
from repvgg_jax.training.summary import summary

REPORT = {
    "model": "repvgg_a0",
    "config_hash": "0123abcd",
    "device": "cpu x1",
    "steps": 1200,
    "examples_per_second": 3456.4,
    "top1": {"train_form": 0.9806, "fused": 0.9778},
    "top5": {"train_form": 1.0, "fused": 0.9972},
    "loss": {"train_form": 0.0712, "fused": 0.0713},
    "eval_count": 360,
    "fusion": {"max_relative_error": 3.1e-7, "top1_agreement": 1.0, "logit_kl": 1.2e-13},
    "params": {"train_form": 9108968, "fused": 8309384},
    "macs": {"train_form": 1513000000, "fused": 1361000},
    "wall_seconds": 45.2,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Returns the monitor's clock, which advances only by `clock.now += seconds`."""
    clock = SimpleNamespace(now=1000.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now, monotonic_ns=iter(range(1000)).__next__)
    monkeypatch.setattr(monitor, "time", fake)
    return clock


@pytest.fixture
def stream():
    return io.StringIO()


def scalars_of(folder):
    """Returns the (tag, step, value) and purged steps of a folder's events, in TensorBoard's order.

    A record is its length (8 bytes), a checksum (4), an Event and a checksum (4).
    """
    from tensorboardX.proto.event_pb2 import Event

    scalars, purges = [], []
    for path in sorted(folder.glob("*tfevents*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            scalars += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            if event.HasField("session_log"):
                purges.append(event.step)
    return scalars, purges


def test_rows_are_on_disk_before_close(tmp_path, stream):
    with Monitor(tmp_path / "new" / "run", 100, 8, stream=stream) as m:
        m.train(10, {"loss": 2.5, "top1": 0.25})
        m.evaluate(10, {"loss": 2.0, "top1": 0.5})
        train, evaluation = read_metrics(tmp_path / "new" / "run" / "metrics.jsonl")
    assert train.items() >= {"step": 10, "kind": "train", "loss": 2.5, "top1": 0.25}.items()
    assert evaluation.items() >= {"step": 10, "kind": "eval", "loss": 2.0, "top1": 0.5}.items()
    assert 0 <= train["seconds"] <= evaluation["seconds"]


def test_resume_cuts_what_the_dead_run_wrote_later(tmp_path, stream, clock):
    with Monitor(tmp_path, 100, 8, stream=stream) as m:
        for step in (10, 20, 30):
            clock.now += 1
            m.train(step, {"loss": step / 10})
            m.evaluate(step, {"loss": step / 10})
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 40, "kind": "tra')
    with Monitor(tmp_path, 100, 8, start_step=20, stream=stream, seconds_before=3.0) as m:
        clock.now += 5
        m.train(30, {"loss": 7.0})
    rows = read_metrics(path)
    assert [(row["step"], row["kind"]) for row in rows] == [
        (10, "train"),
        (10, "eval"),
        (20, "train"),
        (20, "eval"),
        (30, "train"),
    ]
    assert rows[-1]["loss"] == 7.0
    assert rows[-1]["seconds"] == 8.0  # 3 until it died, and 5 since
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "curves.png",
        "metrics.jsonl",
        "tensorboard",
    ]
    scalars, purges = scalars_of(tmp_path / "tensorboard")
    assert purges == [1, 21]
    assert scalars[-2][:2] == ("train/loss", 30)


def test_a_diverged_run_still_writes_json(tmp_path, stream):
    with Monitor(tmp_path, 10, 8, stream=stream) as m:
        m.train(5, {"loss": float("nan"), "top1": 0.5})

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse)["loss"] is None
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_read_metrics_forgives_only_the_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "kind": "train", "seconds": 1.0} for step in (1, 2, 3)]
    one, two, three = map(json.dumps, rows)
    path.write_text(f"{one}\n{two}\n{three[:4]}")
    assert read_metrics(path) == rows[:2]
    path.write_bytes(one.encode() + b'\n{"loss": "\xc3')  # cut inside a character
    assert read_metrics(path) == rows[:1]
    path.write_text(f"{one}\n{two[:4]}\n{three}\n")
    with pytest.raises(UsageError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)
    path.write_text(f'{{"step": 1}}\n{two}\n')
    with pytest.raises(UsageError, match=r"line 1: it lacks step, kind or seconds; each line"):
        read_metrics(path)


def test_lines_where_there_is_no_terminal(tmp_path, stream, clock):
    with Monitor(tmp_path, 1000, 64, stream=stream) as m:
        clock.now += 50
        m.train(100, {"grad_norm": 2.0, "loss": 1.5, "top1": 0.5, "learning_rate": 0.125})
        clock.now += 10
        m.train(200, {"loss": 1.25, "top1": 0.5, "learning_rate": 0.125})
        m.evaluate(200, {"loss": 1.0, "top1": 0.75, "count": 360})
        m.evaluate(300, {"loss": 0.5, "top1": 0.75, "count": 360})
        m.evaluate(300, {"top1": 0.5})
        for step in (301, 302, 303):
            clock.now += 6
            m.between(step, 0.25)
        assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 300
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().splitlines() == [
        "step   100/1000  loss 1.500  top1 0.500  grad_norm 2  lr 0.125  128 images/s  07:30 left",
        "step   200/1000  loss 1.250  top1 0.500  lr 0.125  640 images/s  01:20 left",
        "step   200/1000  evaluation  loss 1.000  top1 0.750  best so far",
        "step   300/1000  evaluation  loss 0.500  top1 0.750  best so far",
        "step   300/1000  evaluation  top1 0.500",
        "step   302/1000  loss 0.250  01:10 left",
    ]


def test_a_bar_on_a_terminal(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    with Monitor(tmp_path, 1000, 64, start_step=100, stream=stream) as m:
        clock.now += 10
        m.train(200, {"loss": 1.25, "top1": 0.5})
        m.evaluate(200, {"loss": 1.0})
        m.announce("evaluating")
        m.evaluate(200, {"top1": 0.5})
    shown = stream.getvalue()
    assert re.search(r"\r 20%\|.*\| 200/1000  loss 1\.250  640 images/s  01:20 left", shown)
    assert re.search(r"\rstep   200/1000  evaluation  loss 1\.000\n", shown)  # a line of its own
    assert re.search(r"\r 20%\|.*\| 200/1000  evaluating", shown)
    assert "\033[32mstep   200/1000  evaluation  top1 0.500  best so far\033[0m" in shown


def test_images_per_second_leaves_out_compilation_and_evaluation(tmp_path, stream, clock):
    m = Monitor(tmp_path, 100, 10, stream=stream, primary=False)
    assert m.examples_per_second == 0.0
    clock.now += 100  # compilation
    m.train(10, {})
    assert m.examples_per_second == pytest.approx(1.0)  # the only interval
    clock.now += 1
    m.train(20, {})
    clock.now += 50
    m.evaluate(20, {})
    clock.now += 3
    m.train(40, {})
    assert m.examples_per_second == pytest.approx(30 * 10 / 4)
    m.train(40, {})  # a step reported twice, at the same instant, changes nothing
    assert m.examples_per_second == pytest.approx(30 * 10 / 4)


def test_reports_in_bursts_show_the_speed_of_a_second_or_more(tmp_path, stream, clock):
    with Monitor(tmp_path, 100, 10, stream=stream) as m:
        for step, seconds in enumerate([0.8, 0.0, 0.001, 0.799, 0.001, 1.6], start=1):
            clock.now += seconds
            m.train(step, {})
    rates = [row.get("examples_per_second") for row in read_metrics(tmp_path / "metrics.jsonl")]
    # A report without a duration has no speed; its step counts with the next.
    expected = [12.5, None, 30 / 0.801, 40 / 1.6, 50 / 1.601, 10 / 1.6]
    assert rates == pytest.approx(expected)


def test_an_evaluation_before_the_first_step_does_not_hide_compilation(tmp_path, stream, clock):
    m = Monitor(tmp_path, 100, 10, stream=stream, primary=False)
    m.evaluate(0, {})
    clock.now += 100
    m.train(10, {})
    clock.now += 1
    m.train(20, {})
    assert m.examples_per_second == pytest.approx(100.0)


def test_other_hosts_write_and_show_nothing(tmp_path, stream):
    with Monitor(tmp_path / "run", 10, 8, stream=stream, primary=False) as m:
        m.train(5, {"loss": 1.0})
        m.evaluate(5, {"loss": 1.0})
    assert not (tmp_path / "run").exists()
    assert stream.getvalue() == ""


def test_tensorboard_holds_the_scalars(tmp_path, stream):
    with Monitor(tmp_path, 10, 8, stream=stream) as m:
        m.train(5, {"loss": 1.5, "top1": 0.25})
        m.evaluate(10, {"top1": 0.5})
    scalars, _ = scalars_of(tmp_path / "tensorboard")
    assert {("train/loss", 5, 1.5), ("train/top1", 5, 0.25), ("eval/top1", 10, 0.5)} <= {*scalars}


def test_close_again_does_nothing(tmp_path, stream):
    with Monitor(tmp_path, 10, 8, stream=stream) as m:
        m.train(5, {"loss": 1.5})
    (tmp_path / "curves.png").unlink()
    m.close()
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "kind": "train", "loss": 2.0, "top1": 0.1}],
        [{"step": s, "kind": "train", "loss": 9.0 / s, "top1": s / 99} for s in range(1, 13)],
        [{"step": 1, "kind": "eval", "loss": 2.0}],
    ],
    ids=["one row", "no eval", "eval only"],
)
def test_curves_of_little(tmp_path, rows, monkeypatch):
    """Every row is drawn at its step, even if there are only a few."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, path: figures.append(f) or save(f, path))
    for given in (rows, []):
        draw_curves(given, tmp_path / "few.png")
        assert (tmp_path / "few.png").read_bytes().startswith(b"\x89PNG")
    loss, top1 = figures[0].axes
    steps = [row["step"] for row in rows]
    losses = [row["loss"] for row in rows]
    # A longer curve is drawn twice: its values and a smoothed line.
    assert loss.lines[0].get_xdata().tolist() == steps
    assert loss.lines[0].get_ydata().tolist() == pytest.approx(losses)
    assert len(loss.lines) == (2 if len(rows) >= 10 else 1)
    assert bool(top1.lines) == ("top1" in rows[0])
    assert not any(axes.lines for axes in figures[1].axes)


def test_smoothing_keeps_a_constant_and_calms_noise():
    import numpy as np

    np.testing.assert_allclose(curves.smoothed(np.full(30, 2.5)), 2.5)
    noise = np.random.default_rng(0).normal(size=300)
    smooth = curves.smoothed(noise)
    assert smooth.shape == noise.shape
    assert smooth.std() < 0.4 * noise.std()


def test_write_json_leaves_the_old_file_where_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_json(path, {"top1": {"fused": 0.5}})
    old = path.read_text()
    assert json.loads(old) == {"top1": {"fused": 0.5}}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"loss": object()})

    def disk_full(_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"loss": 1.0})
    assert path.read_text() == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_summary_has_both_columns():
    lines = summary(REPORT).splitlines()
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells == [
        ["repvgg_a0 on cpu x1", "train form", "fused"],
        ["top-1", "98.06%", "97.78%"],
        ["top-5", "100.00%", "99.72%"],
        ["loss", "0.0712", "0.0713"],
        ["parameters", "9,108,968", "8,309,384"],
        ["multiply-adds", "1.513 G", "1.361 M"],
        [
            "fusion in float32: max relative error 3.1e-07, top-1 agreement 100.00%, "
            "logit KL 1.2e-13"
        ],
        ["evaluated 360 images; 1,200 steps at 3,456 images/s; 45.2 s in all; config 0123abcd"],
    ]
    assert len({len(line) for line in lines[:6]}) == 1  # right-aligned columns


def test_summary_of_a_resumed_run_of_few_classes():
    times = {"first_step_seconds": 7.25, "start_seconds": 30.0, "wall_seconds": 7500.0, "starts": 3}
    changes = {"model": "RepVGG (widths 4-8)", "training_loss": "label smoothing 0.1"}
    changes["best"] = {"step": 1100, "top1": 0.9875}
    few = {name: value for name, value in REPORT.items() if name != "top5"}
    text = summary(few | changes | times)
    assert "top-5" not in text
    assert "at step 1,100, chosen on the evaluation images; the report and the fused" in text
    opens = "rj.load(workdir, step=1100) opens the train form of that step"
    assert f"last step, 1,200\n--mode=fuse --step=1100 fuses the best; {opens}" in text
    fused_again = f"the report is of the last step, 1,200, the fused weights of step 1,100\n{opens}"
    assert fused_again in summary(few | changes, fused_step=1100)
    assert "best" not in summary(few | {"best": {"step": 1200, "top1": 1.0}})
    assert "30.0 s in this start (first step after 7.2 s); 2:05:00 in all 3 starts" in text
    assert "the training loss includes label smoothing 0.1; the loss above does not" in text


def test_summary_shows_the_rounding_errors_of_deployment():
    exact = REPORT["fusion"]
    agreement = {name: exact[name] for name in ("top1_agreement", "logit_kl")}
    same = {"dtype": "float32", "relative_error": 3.1e-7, **agreement}
    assert summary(REPORT | {"fusion": exact | {"deployed": same}}) == summary(REPORT)
    rounded = {"dtype": "bfloat16", "relative_error": 0.029, "top1_agreement": 0.9444}
    lines = summary(REPORT | {"fusion": exact | {"deployed": rounded | {"logit_kl": 2.2}}})
    figures = "relative error 2.9e-02, top-1 agreement 94.44%, logit KL 2.2e+00"
    assert f"\nfusion as deployed (bfloat16): {figures}\n" in lines


def test_summary_of_part_of_a_run():
    lines = summary({"model": "m", "top1": {"fused": 0.5}}, fused_step=1).splitlines()
    assert [line.split() for line in lines] == [
        ["m", "train", "form", "fused"],
        ["top-1", "-", "50.00%"],
    ]
