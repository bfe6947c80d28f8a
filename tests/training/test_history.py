"""Tests of the history of a run: the environments that computed its steps, and its duration."""

import json

import jax
import pytest

from repvgg_jax.config.workdir import make_workdir
from repvgg_jax.training.environment import differences
from repvgg_jax.training.history import (
    environments,
    read_history,
    record_end,
    record_start,
    recorded_seconds,
)
from tests.support.runs import tiny_config


def write_history(folder, *starts, torn=""):
    rows = [
        json.dumps({"step": step, "changed": {}, "environment": {"convolutions": engine}})
        for step, engine in starts
    ]
    (folder / "history.jsonl").write_text("\n".join([*rows, torn]))


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([(0, "XLA")], [(0, "XLA")]),
        ([(0, "XLA"), (40, "XLA"), (80, "oneDNN")], [(0, "XLA"), (80, "oneDNN")]),
        ([(0, "XLA"), (40, "oneDNN"), (80, "XLA")], [(0, "XLA"), (40, "oneDNN"), (80, "XLA")]),
        # The steps from 40 on were lost, as their checkpoint was damaged.
        ([(0, "XLA"), (40, "oneDNN"), (40, "Metal")], [(0, "XLA"), (40, "Metal")]),
        ([(0, "XLA"), (0, "oneDNN")], [(0, "oneDNN")]),
    ],
)
def test_only_environments_whose_steps_are_left_count(tmp_path, starts, expected):
    write_history(tmp_path, *starts, torn='{"step": 90, "chan')
    found = [(each["from_step"], each["convolutions"]) for each in environments(tmp_path)]
    assert found == expected


def test_the_time_of_a_former_run_does_not_count(tmp_path):
    rows = ('{"ended": "", "seconds": 7.0}', '{"step": 0}', '{"ended": "", "seconds": 5.0}')
    for count, seconds in enumerate((7.0, 0.0, 5.0), 1):
        (tmp_path / "history.jsonl").write_text("\n".join(rows[:count]))
        assert recorded_seconds(tmp_path) == seconds


def test_the_time_of_a_killed_start_counts_even_if_the_next_one_is_killed_too(tmp_path):
    make_workdir(tiny_config().to_dict(), tmp_path)
    record_start(tmp_path, {}, {}, 0, 0.0)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 9, "kind": "train", "seconds": 30.0}\n{"step": 1')
    record_start(tmp_path, {}, {}, 5, recorded_seconds(tmp_path))
    # By a monitor that starts from step 5.
    metrics.write_text('{"step": 5, "kind": "train", "seconds": 20.0}\n')
    assert recorded_seconds(tmp_path) == 30.0
    starts = read_history(tmp_path)
    assert [row["seconds"] for row in starts] == [0.0, 30.0]
    assert all(f"jax=={jax.__version__}" in row["packages"] for row in starts)
    assert "repvgg" not in str(starts[0]["packages"])  # which pip could not install


def test_a_start_has_one_end_whose_step_begins_no_run(tmp_path):
    write_history(tmp_path, (0, "XLA"))
    record_end(tmp_path, 0, 5.0)
    record_end(tmp_path, 4, 7.0)
    start, end = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert (start["step"], end["step"], end["seconds"]) == (0, 4, 7.0)
    record_end(tmp_path, 0, 8.0)
    assert len(read_history(tmp_path)) == 1


def test_a_run_without_a_history_has_none(tmp_path):
    assert read_history(tmp_path) == environments(tmp_path) == []


def test_differences_are_those_that_change_numbers():
    before = {
        "versions": {"jax": "0.10.2", "python": "3.11.7"},
        "device": "cpu",
        "processor": "A",
        "cores": 2,
        "data": {"train": {"images": 100}},
    }
    assert differences(before, before | {"cores": 64}) == []
    assert differences(before, before | {"versions": {"jax": "0.10.2", "python": "3.13"}}) == []
    now = before | {"versions": {"jax": "0.12.0"}, "data": {"train": {"images": 101}}}
    assert differences(before, now | {"processor": "B"}) == [
        "jax 0.10.2 before, 0.12.0 now",
        "processor A before, B now",
        "data train images 100 before, 101 now",
    ]
    gpu = before | {"device": "H100"}
    assert differences(gpu, gpu | {"processor": "B"}) == []
