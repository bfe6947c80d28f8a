"""Runs that a signal, a deadline or a jumping clock disturbs."""

import json
import os
import signal
import time
from types import SimpleNamespace

import pytest

import repvgg_jax as rj
from repvgg_jax.checkpoint import manager
from repvgg_jax.cli import train as train_module
from repvgg_jax.errors import RunError, Stopped
from repvgg_jax.runtime import signals
from repvgg_jax.runtime.signals import Stopping
from repvgg_jax.training.metrics import read_metrics
from tests.support.faults import before_step, before_steps, steps_of
from tests.support.runs import equal, tiny_config, train


@pytest.mark.medium
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step(number, undisturbed, tmp_path, monkeypatch):
    before_step(monkeypatch, 2, lambda state: os.kill(os.getpid(), number))
    config = tiny_config(train_checkpoint_every=100)
    message = rf"{number.name} after step 2 of 4, which is saved"
    with Stopping() as stopping, pytest.raises(Stopped, match=message):
        train(config, tmp_path, stopping)
    assert manager.steps(tmp_path) == [2]
    equal(train(config, tmp_path).state.eval_variables, undisturbed[0].eval_variables)


@pytest.mark.medium
def test_a_signal_during_evaluation_saves_what_was_trained(undisturbed, tmp_path, monkeypatch):
    config = tiny_config(train_eval_every=2, train_eval_batch_size=60, train_checkpoint_every=100)
    stopping = Stopping()
    checks = 0

    def check(mesh):
        nonlocal checks
        checks += 1
        if checks == 5:  # two steps, and three of six batches of the evaluation
            os.kill(os.getpid(), signal.SIGTERM)
        Stopping.check(stopping, mesh)

    monkeypatch.setattr(stopping, "check", check)
    with stopping, pytest.raises(Stopped, match="SIGTERM after step 2 of 4"):
        train(config, tmp_path, stopping)
    assert checks == 5
    assert manager.steps(tmp_path) == [2]
    assert steps_of(tmp_path, "eval") == []
    trained = train(config, tmp_path)
    equal(trained.state.eval_variables, undisturbed[0].eval_variables)
    assert steps_of(tmp_path, "eval") == [2, 4]  # the interrupted evaluation is repeated


@pytest.mark.slow
def test_a_signal_after_the_last_step_says_what_is_saved(tmp_path, monkeypatch):
    original = train_module.fuse_and_save

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(train_module, "fuse_and_save", interrupted)
    message = "stopped by SIGTERM after the last step, which is saved; rerun the same command"
    with pytest.raises(Stopped, match=message):
        train_module.run_train(tiny_config(), tmp_path)
    assert not (tmp_path / "report.json").exists()
    monkeypatch.undo()
    train_module.run_train(tiny_config(), tmp_path)
    assert (tmp_path / "report.json").exists()


@pytest.mark.medium
def test_a_deadline_leaves_time_to_save(tmp_path, monkeypatch):
    clock = 0.0

    def advance(state, step):
        nonlocal clock
        clock += 1.0

    before_steps(monkeypatch, advance)
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: clock))
    config = tiny_config(train_steps=500, train_checkpoint_every=1000, train_deadline=30.0)
    # A tenth of the time is for saving, and a step takes a second.
    with pytest.raises(Stopped, match="the deadline of 30 s after step 26 of 500"):
        train(config, tmp_path)
    assert manager.steps(tmp_path) == [26]


@pytest.mark.medium
@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_a_clock_that_jumps_loses_nothing(jump, undisturbed, tmp_path, monkeypatch):
    """A save uses the clock for its timeout and may give up; the error then says so."""
    clock, ahead = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: clock() + ahead)

    def jumps(state):
        nonlocal ahead
        ahead += jump

    before_step(monkeypatch, 2, jumps)
    try:
        train_module.run_train(tiny_config(), tmp_path)
    except RunError as error:
        assert "could not be written" in str(error)  # noqa: PT017 (either is right)
        train_module.run_train(tiny_config(), tmp_path)
    assert ahead == jump
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 < report["wall_seconds"] < 300
    seconds = [row["seconds"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert seconds == sorted(seconds)
    equal(rj.load(tmp_path)[1], undisturbed[0].eval_variables)


def test_a_stop_before_the_first_step_says_that_nothing_is_saved(tmp_path):
    with pytest.raises(Stopped, match="before the first of 4 steps, with nothing to save"):
        train(tiny_config(), tmp_path, Stopping(deadline=0.0))
