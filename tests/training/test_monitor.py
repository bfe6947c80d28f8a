"""Tests of the monitor: its files after a crash, and its output."""

import io
import json
import re
import struct
from types import SimpleNamespace

import pytest

from repvgg_jax.errors import UsageError
from repvgg_jax.training import monitor
from repvgg_jax.training.metrics import read_metrics
from repvgg_jax.training.monitor import Monitor


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
