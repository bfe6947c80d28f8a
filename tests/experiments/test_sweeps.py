"""Sweeps: their runs, checks before anything starts, locks, and resuming."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from experiments.benchmarks import throughput
from experiments.report import build
from experiments.sweeps import run, run_one, status, workdirs
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.expand import expand, parse_overrides
from experiments.sweeps.launchers import local
from experiments.sweeps.rows import read_rows
from experiments.sweeps.spec import Sweep
from repvgg_jax.errors import RunError, UsageError
from tests.support.sweep_runs import flags

ROOT = Path(__file__).parents[2]
TIMES = {
    "finished",
    "wall_seconds",
    "step_seconds",
    "examples_per_second",
    "startup_seconds",
    "evaluation_seconds",
    "environment",
    "commit",
    "dirty",
    "earlier_commits",
}


def one(sweep, name, seed=0, **fields):
    [found] = expand(sweep, seeds=[seed], only=[name], overrides=fields)
    return found


def test_a_hash_is_shared_by_what_computes_the_same_and_by_nothing_else():
    both = one("branches", "both")
    assert both.config_hash == one("variants", "full").config_hash
    assert both.config_hash == one("blocks", "repvgg").config_hash
    assert both.config_hash == one("branches", "both", **{"data.data_dir": "/x"}).config_hash
    others = [
        one("branches", "both", 1),
        one("branches", "none"),
        *expand("groups", "cifar10_full"),
    ]
    assert both.config_hash not in {other.config_hash for other in others}
    [given] = expand("branches", seeds=[2], only=["none"], overrides={"train.epochs": 1})
    assert given.config().model.branches == ("kxk",)
    assert (given.config().train.epochs, given.config().seed) == (1.0, 2)


def test_all_errors_are_listed_at_once(monkeypatch):
    variants = {
        "good": {},
        "field": {"model.blok": "dbb"},
        "block": {"model.block": "dbbb"},
        "branch": {"model.branches": ("3x3",)},
        "group": {"model.bn_group_size": 48},
        "type": {"train.epochs": "many"},
        "range": {"optim.momentum": 2.0},
        "two": {"model.groop": 2, "optim.momentun": 0.5},
        "values": {"optim.momentum": -1.0, "optim.learning_rate": -1.0},
        "fit": {"model.depths": (1, 2)},
        "images": {"data.policy": "strong"},
        "optimizer": {"model.block": "acb", "optim.custom_l2": True},
        "weights": {"init_from": "/nowhere"},
        "nothing": {"train.accumulate": 0},
    }
    monkeypatch.setitem(SWEEPS, "wrong", Sweep("", "good", variants))
    with pytest.raises(UsageError) as caught:
        expand("wrong")
    text = str(caught.value)
    assert text.startswith("15 errors:")
    for name, words in {
        "field": "did you mean model.block",
        "block": "unknown block 'dbbb'",
        "branch": "3x3",
        "group": "bn_group_size=48",
        "type": "must be of type float",
        "range": "optim.momentum=2.0",
        "two": "model.groop",
        "fit": "widths",
        "images": "strong",
        "optimizer": "optim.custom_l2",
        "weights": "no run in /nowhere",
        "nothing": "train.accumulate=0: must be at least 1",
    }.items():
        assert re.search(f"wrong/{name}: .*{re.escape(words)}", text), text
    assert "optim.momentun" in text
    assert "wrong/values: optim.momentum=-1.0" in text
    assert "wrong/values: optim.learning_rate=-1.0" in text
    assert "good" not in text


def test_unknown_names_and_identical_variants_are_rejected():
    with pytest.raises(UsageError, match=r"(?s)3 errors.*branchez.*cifar11.*seeds 1,1"):
        expand("branchez", "cifar11", [1, 1])
    with pytest.raises(UsageError, match="no variant fast; it has none, identity, 1x1, both"):
        expand("branches", only=["fast"])
    with pytest.raises(UsageError, match=r"unknown sweep 'branchs': did you mean branches\?"):
        expand("branchs")
    with pytest.raises(UsageError, match=r"has no variant identiti; did you mean identity\?"):
        expand("branches", only=["identiti"])
    with pytest.raises(UsageError, match=r"(?s)3 errors:.*has no variant fast.*--seeds.*blok"):
        expand("branches", only=["fast"], overrides={"seed": 3, "model.blok": 1})
    with pytest.raises(UsageError, match="none and identity and 1x1 and both are identical"):
        expand("branches", overrides={"model.branches": ("kxk",)})


def test_flags_are_read_by_the_type_of_their_field():
    given = ["--config.data.name=1", "--config.data.flip=false", "--config.model.widths=(1,2)"]
    assert parse_overrides(given) == {
        "data.name": "1",
        "data.flip": False,
        "model.widths": (1, 2),
    }
    for wrong in (["--fast"], ["--config.seed"], ["--config.seed=1", "--config.seed=2"]):
        with pytest.raises(UsageError, match=wrong[0].split("=")[0]):
            parse_overrides(wrong)
    with pytest.raises(UsageError, match=r"2 errors:(.|\n)*--fast(.|\n)*given twice"):
        parse_overrides(["--fast", "--config.seed=1", "--config.seed=2"])


@pytest.mark.system
def test_a_run_is_trained_once_for_all_sweeps_and_failures_wait(tmp_path, capsys, monkeypatch):
    started = []
    monkeypatch.setattr(
        local, "launch", lambda jobs, _: started.extend(run_one.main(j.command[3:]) for j in jobs)
    )
    folders = [f"--workdirs={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}"]

    def sweep(name, *arguments, code=0, **changes):
        started.clear()
        given = [name, "--seeds=0", *folders, *arguments, *flags(**changes)]
        assert run.main(given) == code
        return capsys.readouterr().out, started.copy()

    assert sweep("branches", "--only=none", "--dry_run")[1] == []
    text, codes = sweep("branches", "--only=none")
    assert codes == [0]
    assert "1 new; to run: 1" in text
    assert sweep("branches", "--only=none")[1] == []
    (tmp_path / "results/branches.jsonl").unlink()
    assert sweep("branches", "--only=none")[1] == []  # the row is made from the workdir
    shutil.rmtree(tmp_path / "runs")
    text, codes = sweep("blocks", "--only=plain")  # the same run; only its row is left
    assert codes == []
    assert f"1 done; to run: none\nrows are in {tmp_path / 'results'}; " in text
    [row], [other] = (read_rows(tmp_path / f"results/{n}.jsonl") for n in ("branches", "blocks"))
    assert other == row | {"sweep": "blocks", "name": "plain"}
    assert (row["steps"], row["seed"], row["version"]) == (8, 0, 1)
    assert row["curves"]["eval"]["step"] == [6, 8]
    assert row["top1"].keys() == {"train_form", "fused"}
    assert row["overrides"]["model.branches"] == ["kxk"]
    assert row["temporaries_bytes"] > 0
    assert 0 < row["startup_seconds"] < 3600
    assert 0 <= row["evaluation_seconds"] < row["wall_seconds"]
    assert row["eval_images"] == 360
    assert row["environment"]["versions"]["jax"] == jax.__version__
    # Its first evaluation needs more memory than there is.
    full = {"optim__momentum": 0.8, "train__eval_batch_size": 10**12}
    assert sweep("branches", "--only=none", **full)[1] == [3]
    text, codes = sweep("branches", "--only=none", code=RunError.exit_code, **full)
    assert codes == []
    assert re.search(r"failed: this machine's memory is exhausted \(.*\(use --retry_failed", text)
    full["train__eval_batch_size"] = 180
    assert sweep("branches", "--only=none", "--retry_failed", **full)[1] == [0]
    # This learning rate makes the loss not finite.
    wild = {"optim__learning_rate": 1e20}
    assert sweep("branches", "--only=none", **wild)[1] == [3]
    given = ["branches", "--only=none,both", "--seeds=0", *folders]
    assert status.main([*given, *flags()]) == 0
    text = capsys.readouterr().out
    assert re.search(r"none seed 0 +\w{12}  done +train form \d+\.\d\d%, fused", text)
    assert "1 done, 1 new" in text
    assert status.main(["branches", folders[0]]) == 0  # of the last launch, with its fields
    text = capsys.readouterr().out
    assert text.startswith("last launch: --protocol=cifar10_short --seeds=0 --only=none ")
    assert re.search(r"failed +step \d+: loss.*\nbranches, cifar10_short: 1 failed\n", text)
    assert status.main(["branches", folders[0], f"--results={tmp_path}/none"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/none does not exist: no run has a row\n")
    assert status.main(folders[:1]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"^branches +cifar10_short +1 failed +rows in {tmp_path}/results\n", text)
    # Rows of other protocols have lines of their own; other sweeps share a run that has a row.
    assert re.search(r"\nvariants +cifar10_b0 +\d+ done", text)
    assert text.endswith("\nnot started: deep_init\n")


@pytest.mark.parametrize("command", [run, status, build, throughput])
def test_a_wrong_flag_is_one_line(command, capsys):
    assert command.main(["branches", "--seeds=1,,2", "--results="]) == 2
    text = capsys.readouterr()
    assert text.out == ""
    assert re.fullmatch(r"error: .*; --help lists the flags\n", text.err)


def test_flags_of_a_launch_that_no_longer_fit_are_named(tmp_path, capsys):
    workdirs.remember_launch(tmp_path, "branches", ["--only=gone"])
    for sweep in ([], ["branches"]):
        assert status.main([*sweep, f"--workdirs={tmp_path}"]) == UsageError.exit_code
        expected = f"last launch in {tmp_path}/branches.json: branches has no variant gone"
        assert expected in capsys.readouterr().err


def test_rows_of_others_are_not_taken_for_a_launch(tmp_path, capsys):
    assert status.main(["branches", f"--workdirs={tmp_path}"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"nothing was launched in {tmp_path}; rows are in experiments/results"


def test_paths_are_expanded_and_urls_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = ["--results=~/results", "--workdirs=~/runs", "--folder=~/jobs"]
    options, _, launcher = run.parse(["branches", "--launcher=slurm", *paths])
    found = [options.results, options.workdirs, launcher.folder]
    assert found == [tmp_path / name for name in ("results", "runs", "jobs")]
    with pytest.raises(UsageError, match=r"--results: gs://bucket/results is a URL.*mount the b"):
        run.parse(["branches", "--results=gs://bucket/results"])


def rows_without_times(results):
    rows = read_rows(results / "branches.jsonl")
    return {row["name"]: {k: v for k, v in row.items() if k not in TIMES} for row in rows}


@pytest.mark.system
@pytest.mark.slow
def test_a_sweep_killed_three_times_gives_the_rows_of_an_undisturbed_one(tmp_path):
    def start(folder):
        command = [sys.executable, "-m", "experiments.run", "branches", "--launcher=local"]
        command += ["--seeds=0", "--only=none,both", f"--workdirs={tmp_path / folder / 'runs'}"]
        command += [f"--results={tmp_path / folder / 'results'}"]
        command += flags(train__steps=60, train__checkpoint_every=5)
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    def steps():
        """Returns the steps of both runs, from the lines of their curves, one for two steps."""
        files = (tmp_path / "killed" / "runs").glob("*/metrics.jsonl")
        return 2 * sum(path.read_text().count('"train"') for path in files)

    assert start("whole").wait(timeout=300) == 0
    rng = random.Random(0)
    for low in (4, 30, 75):  # in the first run twice, in the second once
        process, until = start("killed"), low + rng.randrange(25)
        while process.poll() is None and steps() < until:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None, "it ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    assert start("killed").wait(timeout=300) == 0
    whole = rows_without_times(tmp_path / "whole" / "results")
    assert whole.keys() == {"none", "both"}
    assert rows_without_times(tmp_path / "killed" / "results") == whole
