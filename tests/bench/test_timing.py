"""Interleaved timing, and the rows of --mode=bench."""

import itertools
import json
import math
import time

import jax.numpy as jnp
import pytest

import repvgg_jax as rj
from configs import quickstart
from repvgg_jax.bench.counting import count_macs, count_parameters
from repvgg_jax.bench.models import BENCH_FILE, run_bench
from repvgg_jax.bench.timing import matmul_peak, ratio, time_interleaved
from tests.support.variables import random_variables


def test_a_machine_that_slows_down_does_not_change_the_ratio():
    slowness = itertools.count(1)

    def waiting(milliseconds):
        def function():
            time.sleep(milliseconds * (1 + next(slowness) // 4) / 1e3)

        return function

    times = time_interleaved({"slow": waiting(20), "fast": waiting(10)}, rounds=6)
    assert times["fast"][-1] > 1.5 * times["fast"][0]
    assert ratio(times, "slow", "fast") == pytest.approx(2, rel=0.2)


@pytest.mark.medium
def test_the_peak_is_above_what_a_small_product_reaches():
    assert 1e9 < matmul_peak(jnp.float32, seconds=0.05) < 1e16


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
        assert all(math.isfinite(x) and x > 0 for x in row.values() if isinstance(x, float))
    assert capsys.readouterr().out.count("train form") == 4


@pytest.mark.medium
def test_bench_skips_batches_that_would_take_too_long(tmp_path, capsys):
    config = small_config()
    config.bench.batch_sizes, config.bench.seconds = (4, 8), 1e-9
    run_bench(config, tmp_path)
    assert len((tmp_path / BENCH_FILE).read_text().splitlines()) == 5
    assert "bench.seconds=1e-09" in capsys.readouterr().out


@pytest.mark.medium
def test_bench_skips_steps_whose_batch_the_devices_do_not_divide(tmp_path, capsys):
    config = small_config()
    config.bench.batch_sizes = (1,)
    run_bench(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / BENCH_FILE).read_text().splitlines()]
    assert {(row["task"], row["device"]) for row in rows} == {("forward", "cpu x1")}
    assert "skipped batch 1: not a multiple of 4 devices" in capsys.readouterr().out


@pytest.mark.parametrize("sizes", [(), (0,), (2.5,)])
def test_bench_refuses_batch_sizes_that_are_not_positive_integers(tmp_path, sizes):
    config = small_config()
    config.bench.batch_sizes = sizes
    with pytest.raises(rj.UsageError, match=r"bench\.batch_sizes="):
        run_bench(config, tmp_path)
