"""Steps on images in device memory, many in a call."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvgg_jax.config.build import build
from repvgg_jax.data import resident
from repvgg_jax.errors import RunError
from repvgg_jax.runtime.mesh import shard_batch
from repvgg_jax.training import evaluation, loop, prefetch
from repvgg_jax.training import state as state_module
from repvgg_jax.training import steps as steps_module
from repvgg_jax.training.metrics import read_metrics
from repvgg_jax.training.state import abstract_state
from repvgg_jax.training.steps_per_call import StepsPerCall
from tests.support.batches import take
from tests.support.faults import before_steps, steps_of
from tests.support.runs import equal, tiny_config, train

LONG = {"train_steps": 13, "train_log_every": 5, "train_checkpoint_every": 8}


@pytest.fixture
def fast_loops(monkeypatch):
    """Loops as where they are fast; here are four devices, which oneDNN does not support."""
    for module in (steps_module, evaluation):
        monkeypatch.setattr(module, "is_slow_in_loops", lambda algorithm, dtype: False)


def calls_of(config, workdir, monkeypatch):
    """Returns the last step of each call of a run, and its last state."""
    ends = []
    before_steps(monkeypatch, lambda state, step: ends.append(step))
    return ends, train(config, workdir).state


@pytest.mark.medium
@pytest.mark.usefixtures("fast_loops")
def test_many_steps_in_a_call_are_one_step_a_call_bit_for_bit(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        ends, one = calls_of(tiny_config(**LONG, train_steps_per_call=1), tmp_path / "one", patch)
    assert ends == list(range(1, 14))
    with monkeypatch.context() as patch:
        ends, many = calls_of(tiny_config(**LONG, train_steps_per_call=4), tmp_path / "many", patch)
    assert ends == [1, 5, 8, 10, 13]  # calls end where something is recorded or saved
    equal(many.eval_variables, one.eval_variables)
    equal(many.optimizer_state, one.optimizer_state)
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "many")]
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
        row.pop("examples_per_second", None)
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0] if row["kind"] == "train"] == [5, 10, 13]


@pytest.mark.medium
@pytest.mark.usefixtures("fast_loops")
def test_a_run_killed_within_a_call_resumes_bit_for_bit(tmp_path, monkeypatch):
    config = tiny_config(**LONG, train_steps_per_call=5)
    whole = train(config, tmp_path / "whole").state

    def dies(state, step):
        if step == 13:
            raise KeyError

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        before_steps(patch, dies)
        train(config, tmp_path / "run")
    resumed = train(config, tmp_path / "run").state
    equal(resumed.eval_variables, whole.eval_variables)
    equal(resumed.optimizer_state, whole.optimizer_state)
    assert steps_of(tmp_path / "run", "train") == [5, 10, 13]


@pytest.mark.medium
@pytest.mark.usefixtures("fast_loops")
def test_the_first_step_that_is_not_finite_is_named(tmp_path, monkeypatch):
    original = steps_module.train_step

    def train_step(*arguments, **options):
        state, metrics = original(*arguments, **options)
        bad = jnp.where(state.step == 4, jnp.nan, 1.0)
        return state, metrics | {"loss": metrics["loss"] * bad}

    monkeypatch.setattr(steps_module, "train_step", train_step)
    config = tiny_config(**LONG, train_steps_per_call=5)
    with pytest.raises(RunError, match=r"step 4: loss nan"):
        train(config, tmp_path)


@pytest.mark.medium
@pytest.mark.usefixtures("fast_loops")
def test_a_call_takes_the_batches_of_its_steps_and_seeds():
    experiment = build(tiny_config(data_seed=3, data_augmentation_seed=5, train_log_every=2))
    steps = steps_module.open_steps(experiment, abstract_state(experiment))
    draws = steps._draw(7, 2)
    for row, expected in enumerate(take(experiment.train_data.train_batches(3, 5, 7), 2)):
        got = resident.gather(steps._data, jax.tree.map(lambda rows, row=row: rows[row], draws))
        for name in ("image", "label"):
            np.testing.assert_array_equal(got[name], expected[name])


@pytest.mark.medium
@pytest.mark.usefixtures("fast_loops")
def test_fields_without_effect_are_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(tiny_config(train_steps=2, train_log_every=2, train_steps_per_call=64), tmp_path / "a")
    assert "train.steps_per_call=64 is larger than train.log_every=2" in caplog.text
    train(tiny_config(train_steps=1, train_steps_per_call=64, data_erasing=0.5), tmp_path / "b")
    assert "train.steps_per_call=64 has no effect" in caplog.text


@pytest.mark.medium
@pytest.mark.parametrize("busy", [False, True])
def test_only_idle_devices_wait_for_data(busy, tmp_path, monkeypatch):
    clock = 0.0

    def late(batch, mesh):
        nonlocal clock
        clock += 1.0
        return shard_batch(batch, mesh)

    class Steps(steps_module.StreamedSteps):
        def take(self, *arguments):
            if self._finished is not None and not busy:
                self._finished.result()
            return super().take(*arguments)

    monkeypatch.setattr(prefetch, "shard_batch", late)
    monkeypatch.setattr(steps_module, "StreamedSteps", Steps)
    for module in (steps_module, loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock))
    finished = threading.Event()
    if busy:
        monkeypatch.setattr(steps_module, "_time_when_ready", lambda arrays: finished.wait())
    waiting = train(tiny_config(train_steps=5, data_erasing=0.5), tmp_path).waiting
    finished.set()
    assert waiting == (0 if busy else 1)


@pytest.mark.medium
def test_convolutions_that_are_slow_in_loops_are_in_none(tmp_path, caplog):
    """The four devices here have XLA's convolutions."""
    caplog.set_level(logging.INFO)
    experiment = build(tiny_config(train_steps_per_call=4))
    state = abstract_state(experiment)
    steps = steps_module.open_steps(experiment, state)
    assert "has no effect on a CPU without oneDNN" in caplog.text
    assert steps.per_call == 1
    program = steps._steps.lower(state, steps._data, steps._draw(0, 1), np.int32(1), steps._key)
    assert "convolution" in program.as_text()
    assert "stablehlo.while" not in program.as_text()


@pytest.mark.medium
def test_the_step_is_compiled_while_the_initialization_is(tmp_path, monkeypatch):
    compiled, meanwhile = threading.Event(), threading.Event()

    class Delayed(ThreadPoolExecutor):
        def submit(self, compile_initialization):
            def wait():
                assert compiled.wait(60)
                meanwhile.set()
                return compile_initialization()

            return super().submit(wait)

    class Steps(steps_module.ResidentSteps):
        def compile(self, state):
            super().compile(state)
            compiled.set()

    monkeypatch.setattr(state_module, "ThreadPoolExecutor", Delayed)
    monkeypatch.setattr(steps_module, "ResidentSteps", Steps)
    train(tiny_config(train_steps=1), tmp_path)
    assert meanwhile.is_set()


def test_short_steps_share_a_call_and_long_ones_do_not():
    def chosen(*seconds):
        length = StepsPerCall(100)
        for each in itertools.islice(itertools.cycle(seconds), 6):
            length.wait_and_time(time.monotonic() - each * length.number, length.number, None)
        return length.number

    assert chosen(0.3) == 1
    assert 20 <= chosen(0.01) <= 25
    assert chosen(0.0001) == 100
    assert chosen(1.0) == chosen(10.0) == 1
    assert 20 <= chosen(9.0, 0.01, 0.01, 9.0) <= 25  # compilation, and a pause of the machine
