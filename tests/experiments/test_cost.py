"""Estimated costs of sweeps, and the progress of their runs."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.sweeps import run, status, workdirs
from experiments.sweeps.cost import (
    BY_MACS,
    UNMEASURED,
    Length,
    RemainingCost,
    remaining_cost,
    run_length,
)
from experiments.sweeps.expand import expand
from experiments.sweeps.jobs import Job
from experiments.sweeps.launchers import local
from experiments.sweeps.launchers.base import LauncherOptions
from experiments.sweeps.rows import sweep_fields
from repvgg_jax.bench.counting import count_macs
from repvgg_jax.config.build import make_net
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import abstract
from tests.support.locks import HOLDER
from tests.support.sweep_runs import FIELDS, flags

ROOT = Path(__file__).parents[2]
CPU = "cpu x1, 2 cores"


NUMBERS = itertools.count()
FIXED = 10.0  # seconds of a run besides its steps and evaluations, four of them to start
SHORT = Length(25, 128)


def row(name="both", step=2.0, device=CPU, **changes):
    """Returns the row of 50 steps and two evaluations of 64 images, each as long as a step."""
    where = dict(sweep="branches", name=name, seed=0, protocol="cifar10_short")
    [found] = expand("branches", seeds=[0], only=[name], overrides=FIELDS)
    overrides = json.loads(json.dumps(sweep_fields(found)["overrides"]))
    times = {"wall_seconds": FIXED - 4 + 52 * step, "step_seconds": step, "startup_seconds": 4.0}
    evaluated = {"evaluation_seconds": step, "eval_images": 64, "curves": {"eval": {"step": [50]}}}
    measured = {"device": device, "steps": 50, **times, **evaluated, "overrides": overrides}
    measured["top1"] = dict.fromkeys(("train_form", "fused"), 0.5)
    measured["config_hash"] = str(next(NUMBERS))
    return {**where, **measured, "macs": {"train_form": macs(found)}, **changes}


def seconds(step, length=SHORT):
    """Returns the time of a run on the machine of the rows, approximately."""
    return pytest.approx(FIXED + step * (length.steps + length.images / 64))


def macs(run):
    config = run.config()
    net = make_net(config)
    return count_macs(net, abstract(net), config.data.image_size)


@pytest.fixture
def both():
    [found] = expand("branches", seeds=[1], only=["both"], overrides=FIELDS)
    return found


def curves(workdir, *rows):
    workdir.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"kind": "train", "step": step, "seconds": s}) + "\n" for step, s in rows)
    (workdir / "metrics.jsonl").write_text("".join(lines))


@pytest.mark.medium
def test_cost_is_that_of_the_variant_on_the_most_common_device(tmp_path, both):
    assert remaining_cost(both, tmp_path, SHORT, []) is None
    assert remaining_cost(both, tmp_path, SHORT, [row(protocol="cifar10_full")]) is None
    others = [row("none", 1.2), row("none", 1.2), row("none", 1e5, "H100 x1", steps=1)]
    assert remaining_cost(both, tmp_path, SHORT, others).guesses == (BY_MACS,)
    own = [row(step=1.6), row(step=2.0), row(step=200.0)]
    cost = remaining_cost(both, tmp_path, SHORT, others + own)
    assert cost == RemainingCost(seconds(2.0), CPU)
    paused = row(step=1.6) | {"wall_seconds": 1e6}  # with the usual step time
    assert remaining_cost(both, tmp_path, SHORT, [*own, paused]).seconds < 60
    once = remaining_cost(both, tmp_path, SHORT, [row(step=1.6)] * 3 + [row(step=2.0)])
    assert once.seconds == seconds(1.8)  # a run has a row in each of its sweeps
    wide = {**own[0]["overrides"], "model.widths": [8, 8]}
    assert remaining_cost(both, tmp_path, SHORT, [row(overrides=wide)]).guesses
    shared = row() | {"sweep": "blocks", "name": "repvgg"}
    assert not remaining_cost(both, tmp_path, SHORT, [shared]).guesses
    (tmp_path / "checkpoints/10").mkdir(parents=True)
    left = remaining_cost(both, tmp_path, SHORT, others + own)
    assert left == RemainingCost(pytest.approx(FIXED + 0.6 * 54), CPU)


@pytest.mark.parametrize(
    ("step", "evaluation", "fixed"), [(0.11, 2.9, 30), (0.006, 0.4, 25), (1.1, 40, 120)]
)
def test_a_short_run_is_forecast_from_long_ones_within_30_percent(
    tmp_path, step, evaluation, fixed
):
    """The cost of a run of 60 steps is nearly all start, compiling and evaluation."""
    [run] = expand("branches", seeds=[3], only=["both"], overrides={"train.steps": 60})
    long = {
        "steps": 1172,
        "step_seconds": step,
        "wall_seconds": fixed + 1172 * step + 4 * evaluation,
    }
    long |= {"curves": {"eval": {"step": [391, 782, 1172]}}, "overrides": {}}
    measured = {"eval_images": 10_000, "evaluation_seconds": evaluation, "startup_seconds": 8.0}
    unknown = dict.fromkeys(measured)
    short = Length(60, 20_000)
    for known, guesses in ((measured, ()), (unknown, (UNMEASURED,))):
        cost = remaining_cost(run, tmp_path, short, [row(**long, **known)])
        assert cost.guesses == guesses
        assert cost.seconds == pytest.approx(8 + fixed + 60 * step + 2 * evaluation, rel=0.3)


def test_length_counts_the_evaluations_of_both_forms(both):
    assert run_length(both.config()) == Length(8, 3 * 360)  # after 6 and 8 steps, and fused
    config = both.config().copy_and_resolve_references()
    config.train.update(eval_every=None, steps=60, batch_size=64)  # epochs of 23 steps
    assert run_length(config) == Length(60, 2 * 360)


def test_cost_of_other_variants_scales_with_multiply_adds(tmp_path, both):
    def steps(**changes):
        """Returns the expected seconds of steps and evaluations."""
        cost = remaining_cost(both, tmp_path, SHORT, [row("none", 1.2, **changes)])
        assert cost.guesses == (BY_MACS,)
        return cost.seconds - FIXED

    assert steps(macs={"train_form": macs(both)}) == pytest.approx(27 * 1.2)
    assert steps(macs={"train_form": macs(both) / 4}) == pytest.approx(4 * 27 * 1.2)
    assert 27 * 1.2 < steps() < 36 * 1.2  # the 1x1 branches are a ninth more
    tiny = row("none", 1e6, macs={"train_form": 10})  # too small to be used for larger nets
    near = remaining_cost(both, tmp_path, SHORT, [tiny, row("none", 1.2)])
    assert near.seconds == pytest.approx(FIXED + steps())
    only_steps = Length(25, 0)
    large = {**row("none")["overrides"], "train.batch_size": 4 * both.config().train.batch_size}
    large = remaining_cost(both, tmp_path, only_steps, [row("none", 4.8, overrides=large)])
    small = remaining_cost(both, tmp_path, only_steps, [row("none", 1.2)])
    assert large.seconds == pytest.approx(small.seconds)


@pytest.mark.medium
def test_cost_on_the_users_device_comes_before_the_repositorys(tmp_path, both):
    others = [row(step=2.0 + i) for i in range(9)]
    own = [row(step=0.2, device="H100 x1")]
    cost = remaining_cost(both, tmp_path, SHORT, own, others)
    assert cost == RemainingCost(seconds(0.2), "H100 x1")
    assert remaining_cost(both, tmp_path, SHORT, [], others).device == CPU
    tiny = [row("none", 1e6, macs={"train_form": 10})]
    assert remaining_cost(both, tmp_path, SHORT, tiny, others).seconds < 300
    partial = [row() | {"macs": None}, row() | {"steps": None}]
    assert remaining_cost(both, tmp_path, SHORT, partial) is None


def test_length_is_taken_from_runs_on_the_same_data_only(tmp_path):
    def expected(**fields):
        [run] = expand("branches", seeds=[1], only=["both"], overrides=FIELDS | fields)
        return remaining_cost(run, tmp_path, None, [row()])

    assert expected().seconds == seconds(2.0, Length(50, 128))
    assert expected(**{"data.name": "imagenet2012"}) is None
    assert expected(**{"train.batch_size": 16}) is None


def test_a_variant_that_names_the_protocols_own_value_is_the_baseline(tmp_path):
    [run] = expand("quantization", seeds=[1], only=["float32"], overrides=FIELDS)
    assert not remaining_cost(run, tmp_path, SHORT, [row()]).guesses


def test_device_hours_are_of_all_devices(both):
    cost = RemainingCost(450.0, "TPU v5e x16")
    text = run.table([both, both, both], ["new", "done", "failed"], [cost, cost, cost])
    total = "to run: 1, 2.0 device hours, measured on TPU v5e x16"
    assert text.endswith(f"1 done, 1 failed, 1 new; {total}")
    assert " 450 s" in text
    text = run.table([both, both], ["new", "interrupted"], [cost, None])
    assert text.endswith("2.0 device hours, measured on TPU v5e x16; and 1 run of unknown length")
    guesses = (BY_MACS, UNMEASURED)
    text = run.table([both] * 2, ["new"] * 2, [cost, RemainingCost(90.0, CPU, guesses)])
    assert "about 90 s" in text
    assert f"; guessed: {BY_MACS} (1 run), {UNMEASURED} (1 run)" in text
    text = run.table([both], ["new"], [RemainingCost(90.0, CPU)])
    assert text.endswith("to run: 1, 1.5 device minutes, measured on cpu x1, 2 cores")
    assert run.table([both], ["done"], [cost]).endswith("1 done; to run: none")


def test_data_may_be_missing_where_nothing_starts(tmp_path, capsys):
    command = ["branches", "--seeds=0", "--only=none", f"--workdirs={tmp_path}"]
    command += [*flags(data__source="folder", data__data_dir=tmp_path / "nowhere")]
    assert run.main(command) == 2
    assert "branches/none: " in capsys.readouterr().err
    command.append("--dry_run")
    assert run.main(command) == 0
    text = capsys.readouterr().out
    assert "not checked: " in text
    assert "to run: 1, " in text
    tpu = ["--launcher=kubernetes", "--slice=v5e:1x1", "--image=i", "--queue=q", "--volume=claim"]
    tpu += [f"--mount={tmp_path}", f"--results={tmp_path}"]
    assert run.main([*command, *tpu]) == 0
    text = capsys.readouterr().out
    assert "not checked: " in text
    assert "to run: 1, unknown cost" in text
    # From the rows of the repository, since that folder has none.
    words = ["branches", "--dry_run", "--seeds=7", "--only=none", "--config.data.data_dir=/nowhere"]
    assert run.main([*words, *tpu, f"--workdirs={tmp_path}"]) == 0
    expected = r"to run: 1, \d\.\d device minutes, measured on cpu x1, "
    assert re.search(expected, capsys.readouterr().out)


@pytest.mark.parametrize(
    ("flag", "launcher"), [("--partition=gpu", "local"), ("--queue=tpu", "slurm")]
)
def test_flags_of_another_launcher_are_rejected(flag, launcher, capsys):
    command = ["branches", "--dry_run", f"--launcher={launcher}", flag, *flags()]
    assert run.main(command) == 2
    assert f"--launcher={launcher} does not use {flag.split('=')[0]}" in capsys.readouterr().err


@pytest.mark.system
def test_a_running_run_shows_its_progress_and_the_time_that_is_left(tmp_path, both, monkeypatch):
    results = tmp_path / "results"
    folder = workdirs.make(both, tmp_path)

    def text():
        return status.status([both], tmp_path, results).splitlines()[0]

    assert text().endswith("new")
    curves(folder, (2, 10.0), (4, 40.0))  # 15 seconds a step, and 8 steps in all
    (folder / "checkpoints/3").mkdir(parents=True)
    assert text().endswith("interrupted  step 3/8")  # where it would resume
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        written = (folder / "metrics.jsonl").stat().st_mtime
        monkeypatch.setattr(status, "time", SimpleNamespace(time=lambda: written + 10))
        words = text()
        holder.kill()
    assert "running      step 4/8, " in words
    assert words.endswith("0:50 left")


@pytest.mark.system
def test_a_run_locked_by_another_process_is_not_a_failure(tmp_path, both, capsys):
    folder = workdirs.make(both, tmp_path)
    words = dict(sweep=both.sweep, name=both.name, seed=1, protocol=both.protocol, workdir=folder)
    command = ("python", "-m", "experiments.sweeps.run_one", f"--results={tmp_path / 'results'}")
    command += (*(f"--{name}={word}" for name, word in words.items()), *flags())
    holder = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(holder, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        local.launch([Job("both", command)], LauncherOptions())  # raises nothing
        process.kill()
    text = capsys.readouterr().out
    assert re.search(
        rf"both skipped after \d+ s: locked by process {process.pid} on \S+ since ", text
    )
    assert "1 run: 1 skipped" in text
    assert not (folder / workdirs.ERROR_FILE).exists()


@pytest.mark.parametrize("flag", ["workdirs", "results"])
def test_folders_that_cannot_be_written_are_rejected_first(tmp_path, flag, capsys):
    (tmp_path / "file").write_text("")
    command = ["branches", "--dry_run", *flags(), f"--{flag}={tmp_path / 'file' / 'under'}"]
    assert run.main(command) == 2
    assert f"{tmp_path / 'file'} is not a writable directory" in capsys.readouterr().err


def test_numbers_of_launchers_are_checked_all_at_once():
    with pytest.raises(UsageError, match=r"--processes=0: must be 1 or more; --grace=-3: must be"):
        LauncherOptions(processes=0, grace=-3)
