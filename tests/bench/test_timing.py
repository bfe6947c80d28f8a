"""Interleaved timing, and the rows of --mode=bench."""

import itertools
import json
import math
import re
from functools import partial
from types import SimpleNamespace

import jax
import pytest

import repvgg_jax as rj
from configs import quickstart
from repvgg_jax.bench import timing
from repvgg_jax.bench.counting import count_macs, count_parameters
from repvgg_jax.bench.models import BENCH_FILE, _is_uneven, forms_of, run_bench
from repvgg_jax.bench.table import form_table, header, row_line
from repvgg_jax.bench.timing import highest_rate, quartiles, ratio, time_interleaved
from tests.support.variables import random_variables


def test_a_machine_that_slows_down_does_not_change_the_ratio():
    now, slowness = 0.0, itertools.count(1)

    def waiting(milliseconds):
        def function():
            nonlocal now
            now += milliseconds * (1 + next(slowness) // 4) / 1e3

        return function

    programs = {"slow": waiting(20), "fast": waiting(10)}
    times = time_interleaved(programs, rounds=6, clock=lambda: now)
    assert times["fast"][-1] > 1.5 * times["fast"][0]
    assert ratio(times, "slow", "fast") == pytest.approx(2, rel=0.2)


def test_the_peak_is_that_of_the_fastest_of_several_sizes(monkeypatch):
    now = 0.0

    def wait(milliseconds):
        nonlocal now
        now += milliseconds / 1e3

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    programs = ((1000, partial(wait, milliseconds)) for milliseconds in (20, 5, 10, 1))
    assert highest_rate(programs, 0.0) == pytest.approx(1000 / 5e-3)


def small_config():
    config = quickstart.get_config()
    config.model.depths, config.model.widths, config.model.strides = (1,), (8,), (2,)
    return config


@pytest.mark.medium
def test_bench_has_a_row_for_each_form_task_and_batch(tmp_path, capsys):
    config = small_config()
    config.bench.batch_sizes = (8, 4)
    run_bench(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / BENCH_FILE).read_text().splitlines()]
    assert [(row["task"], row["batch"], row["form"]) for row in rows] == [
        *itertools.product(["forward"], [4, 8], ["train form", "plain", "fused"]),
        *itertools.product(["step"], [4, 8], ["train form", "plain"]),
    ]
    net = rj.create(**config.model.to_dict())
    fused, folded = rj.fuse(net, random_variables(net, 0, 8))
    assert rows[2]["macs"] == count_macs(fused, folded, 8)
    assert rows[2]["parameters"] == count_parameters(folded)
    for row in rows:
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["milliseconds"])
        low, high = row["milliseconds_quartiles"]
        assert low <= row["milliseconds"] <= high
        assert row["versions"]["jax"] == jax.__version__
        assert all(math.isfinite(x) and x > 0 for x in row.values() if isinstance(x, float))
    text = capsys.readouterr()
    starts = [line for line in text.out.splitlines() if line.startswith("train form")]
    assert len(starts) == 5  # the first line is that of its size
    assert "compiling" not in text.out
    assert "batches of 4, 8 images (bench.batch_sizes, not train.batch_size)" in text.out
    assert 1e-3 < float(re.search(r"here: (\S+) TFLOP/s", text.out)[1]) < 1e4
    assert all(0 < row["share_of_peak"] <= 1 for row in rows)
    assert "step, batch 8: compiling plain ...\n" in text.err


@pytest.mark.medium
def test_bench_skips_batches_that_take_too_long_or_that_devices_do_not_divide(tmp_path, capsys):
    config = small_config()
    config.bench.batch_sizes, config.bench.seconds = (1, 4, 8), 1e-9
    run_bench(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / BENCH_FILE).read_text().splitlines()]
    assert [(row["task"], row["batch"], row["device"]) for row in rows] == [
        *[("forward", 1, "cpu x1")] * 3,
        *[("step", 4, "cpu x4")] * 2,
    ]
    text = capsys.readouterr().out
    assert text.count("bench.seconds=1e-09") == 2
    assert "skipped batch 1: not a multiple of 4 devices" in text


def test_a_median_of_rounds_that_differ_is_uncertain():
    assert quartiles([1.0, 2.0, 3.0, 4.0, 50.0]) == (2.0, 4.0)
    assert _is_uneven({"milliseconds": 10.0, "milliseconds_quartiles": [9.0, 12.0]})
    assert not _is_uneven({"milliseconds": 10.0, "milliseconds_quartiles": [9.0, 11.0]})


def test_forms_that_do_not_exist_are_left_out():
    def names(**model):
        config = small_config()
        config.model.update(model)
        return [form.name for form in forms_of(config)]

    assert names() == ["train form", "plain", "fused"]
    assert names(block="relu_in_branch") == ["train form", "plain"]
    assert names(block="plain") == ["train form", "fused"]
    assert names(block="fused") == ["fused"]


def test_figures_without_a_meaning_are_left_out():
    row = {"form": "fused", "parameters": 1_070_000, "macs": 943_000, "winograd_multiplications": 0}
    assert form_table([row]).splitlines()[1].split() == ["fused", "1.07", "M", "943", "k", "0"]
    pointwise = row | {"winograd_multiplications": row["macs"]}
    assert "Winograd" not in form_table([pointwise])
    assert form_table([row, pointwise]).endswith(" -")
    times = {"batch": 8, "compile_seconds": 0.5, "temporaries": 20_480, "milliseconds": 0.0123}
    times |= {"images_per_second": 65_000.0, "share_of_peak": None, "ratio": 1.0}
    line = row_line(row | times, None)
    assert line.split() == ["fused", "8", "0.5", "0.0205", "0.0123", "65,000", "-"]
    assert header("step", None).split()[-2:] == ["of", "peak"]
    assert header("step", "plain").endswith("x plain")


@pytest.mark.parametrize("sizes", [(), (0,), (2.5,)])
def test_bench_refuses_batch_sizes_that_are_not_positive_integers(tmp_path, sizes):
    config = small_config()
    config.bench.batch_sizes = sizes
    with pytest.raises(rj.UsageError, match=r"bench\.batch_sizes="):
        run_bench(config, tmp_path)
