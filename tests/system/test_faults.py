"""Tests that inject realistic faults: nothing is lost or silently wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

import repvgg_jax as rj
from repvgg_jax.checkpoint import manager
from repvgg_jax.training.metrics import read_metrics
from tests.support.commands import ROOT, on_devices, python
from tests.support.faults import steps_of
from tests.support.runs import equal


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_many_times_ends_as_the_undisturbed_one(kills, tmp_path):
    output = python("-m", "tests.support.restarts", tmp_path / "run", kills)
    assert f"killed {kills}" in output
    for step in (manager.steps(tmp_path / "run")[-1], None):
        equal(rj.load(tmp_path / "run", step=step)[1], rj.load(tmp_path / "whole")[1])
    for kind in ("train", "eval"):
        assert steps_of(tmp_path / "run", kind) == steps_of(tmp_path / "whole", kind)
    rows, others = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "whole"))
    assert [row["loss"] for row in rows] == [row["loss"] for row in others]


def test_the_command_exits_0_on_sigterm_and_resumes(tmp_path):
    command = [sys.executable, "main.py", "--config", "configs/quickstart.py"]
    command += ["--workdir", str(tmp_path / "run"), "--config.train.log_every=1"]
    command += ["--config.train.steps=120", "--config.model.depths=(1,1,1,1)"]
    with subprocess.Popen(
        command, cwd=ROOT, env=on_devices(1), stderr=subprocess.PIPE, text=True
    ) as run:
        for line in run.stderr:
            if line.startswith("step"):
                run.send_signal(signal.SIGTERM)
                break
        rest = run.stderr.read()
    assert run.returncode == 0, rest
    assert "stopped by SIGTERM after step" in rest
    assert "Traceback" not in rest
    (step,) = manager.steps(tmp_path / "run")
    assert 0 < step < 120
    python(*command[1:])
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["steps"] == 120
    assert steps_of(tmp_path / "run", "train") == list(range(1, 121))


def test_a_second_process_in_a_workdir_ends_at_once_and_names_the_first(tmp_path):
    arguments = ["main.py", "--config", "configs/quickstart.py", "--workdir", tmp_path / "run"]
    command = [sys.executable, *map(str, arguments), "--config.train.log_every=1"]
    with subprocess.Popen(
        command, cwd=ROOT, env=on_devices(1), stderr=subprocess.PIPE, text=True
    ) as first:
        try:
            assert any(line.startswith("step") for line in first.stderr)
            output = python(*arguments, code=73)
        finally:
            first.kill()
    assert f"{tmp_path / 'run'} is locked by process {first.pid} on " in output
    assert output.count("\n") == 1
    assert not (tmp_path / "run/report.json").exists()


FULL_DISK = """
import sys
from pathlib import Path
import repvgg_jax as rj
from repvgg_jax.checkpoint import manager

from repvgg_jax.errors import RunError
from tests.support.runs import tiny_config, train

workdir = Path(sys.argv[1]) / "run"
config = tiny_config(train_steps=40, train_checkpoint_every=1, train_keep=1000)
config.train.log_every = 1000  # the disk must be full for a checkpoint, not for a row of metrics
try:
    train(config, workdir)
except RunError as error:
    print("message:", error)
step = manager.steps(workdir)[-1]
net, variables = rj.load(workdir, step=step)
print("opened:", step, "of", workdir / "checkpoints" / str(step))
Path(sys.argv[1], "ballast").unlink()
print("resumed to", int(train(config, workdir).state.step))
"""


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "script.py"
    script.write_text(FULL_DISK)
    inside = 'mount -t tmpfs -o size=24m tmpfs "$0" && head -c 21m /dev/zero > "$0/ballast" && "$@"'
    prefix = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]
    prefix += ["sh", "-c", inside, str(disk)]
    possible = shutil.which("unshare") and not subprocess.run([*prefix, "true"]).returncode
    if not possible:
        pytest.skip("no disk of its own can be mounted for the test here (unshare, mount)")
    output = python(script, disk, prefix=[*prefix, "env", f"PYTHONPATH={ROOT}"])
    assert "message: a checkpoint could not be written" in output
    assert "(No space left on device); last good checkpoint" in output
    assert "last good checkpoint: " in output
    named = output.split("last good checkpoint: ")[1].split()[0]
    assert f"of {named}" in output.split("opened: ")[1]
    assert "resumed to 40" in output


def test_a_workdir_without_write_permission_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    # Root may write anywhere unless it drops that capability.
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    if os.getuid() != 0:
        prefix = []
    elif not shutil.which("setpriv"):
        pytest.skip("root can write everywhere, and there is no setpriv to change that")
    arguments = ["--config", "configs/quickstart.py", "--workdir", tmp_path / "closed/run"]
    output = python("main.py", *arguments, code=2, prefix=prefix)
    assert f"--workdir={tmp_path}/closed/run cannot be written to" in output
    assert "Permission denied" in output
