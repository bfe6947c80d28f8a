"""Launchers by name, and SLURM's by running submitit's jobs on this machine."""

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.sweeps import workdirs
from experiments.sweeps.jobs import STOPPED, Job
from experiments.sweeps.launchers import slurm
from experiments.sweeps.launchers.base import LauncherOptions, launcher
from repvgg_jax.errors import UsageError

ROOT = Path(__file__).parents[2]
# A fake run: it counts its starts, saves when told to stop, and finishes at the second start.
RUN = """
import os, signal, sys, time
from pathlib import Path

folder, kind = Path(sys.argv[1]), sys.argv[2]

def note(what):
    with (folder / "log").open("a") as file:
        file.write(what + "\\n")

def save(number, frame):
    note("saved")
    sys.exit(75)

signal.signal(signal.SIGTERM, save if kind != "deaf" else lambda number, frame: note("deaf"))
note("start")
(folder / "starting").write_text(f"{os.getppid()} {os.getpid()}")
(folder / "starting").rename(folder / "ready")
if kind == "fails":
    sys.exit(3)
if kind == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if (folder / "log").read_text().count("start") == 1 and kind != "short":
    for _ in range(600):  # longer than the test waits
        time.sleep(0.1)
note("done")
"""


def fake_run(folder, kind="long"):
    folder.mkdir()
    return Job(folder.name, ("python", "-c", RUN, str(folder), kind, f"--workdir={folder}"))


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timeout"
        time.sleep(0.05)


def log(folder):
    return (folder / "log").read_text().split()


def processes(folder):
    """Returns the ids of submitit's process and its child, once that has started."""
    wait_for((folder / "ready").exists)
    return [int(word) for word in (folder / "ready").read_text().split()]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Returns options of submitit's local executor, with this repository as working directory."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.chdir(ROOT)
    return LauncherOptions(folder=tmp_path / "jobs", cluster="local", gpus=0, minutes=5, grace=12)


@pytest.mark.system
def test_a_preempted_run_saves_and_is_started_again(here, tmp_path):
    jobs = [fake_run(tmp_path / "long"), fake_run(tmp_path / "other", "short")]
    submitted = slurm.submit(jobs, here)
    submitit_process, _ = processes(tmp_path / "long")
    os.kill(submitit_process, signal.SIGTERM)  # the order in which SLURM sends them
    os.kill(submitit_process, signal.SIGUSR2)
    for job in submitted:
        job.result()
    assert log(tmp_path / "long") == ["start", "saved", "start", "done"]
    assert log(tmp_path / "other") == ["start", "done"]


@pytest.mark.system
def test_a_run_that_does_not_save_in_time_is_killed_and_started_again(here, tmp_path):
    [job] = slurm.submit([fake_run(tmp_path / "deaf", "deaf")], replace(here, grace=6))
    os.kill(processes(tmp_path / "deaf")[0], signal.SIGUSR2)
    job.result()
    assert log(tmp_path / "deaf") == ["start", "deaf", "start", "done"]


@pytest.mark.system
def test_sigterm_alone_saves_and_requeues_nothing(here, tmp_path):
    [job] = slurm.submit([fake_run(tmp_path / "long")], replace(here, grace=1))
    os.kill(processes(tmp_path / "long")[0], signal.SIGTERM)
    assert "stopped by SIGTERM" in str(job.exception())
    assert log(tmp_path / "long") == ["start", "saved"]


@pytest.mark.system
def test_a_run_that_fails_is_not_started_again(here, tmp_path):
    bad = fake_run(tmp_path / "bad", "fails")
    (tmp_path / "bad" / workdirs.ERROR_FILE).write_text("of another time\n")
    [job] = slurm.submit([bad], here)
    assert "exit code 3" in str(job.exception())
    assert workdirs.last_error(tmp_path / "bad") == "exit code 3"
    assert log(tmp_path / "bad") == ["start"]


@pytest.mark.system
def test_a_run_that_was_killed_has_failed(here, tmp_path):
    [job] = slurm.submit([fake_run(tmp_path / "big", "killed")], here)
    assert "exit code -9" in str(job.exception())
    assert workdirs.last_error(tmp_path / "big") == "killed by SIGKILL (out of memory?)"


@pytest.mark.system
def test_signals_for_submitit_do_not_end_the_run(here, tmp_path):
    """SLURM may send them to all processes of a step."""
    folder = tmp_path / "long"
    [job] = slurm.submit([fake_run(folder)], here)
    submitit_process, run = processes(folder)
    assert os.getpgid(run) != os.getpgid(submitit_process)
    os.kill(run, signal.SIGUSR2)
    os.kill(submitit_process, signal.SIGUSR2)
    job.result()
    assert log(folder) == ["start", "saved", "start", "done"]


@pytest.mark.system
def test_sbatch_script_has_the_options(tmp_path, monkeypatch, capsys):
    """A fake sbatch keeps the script."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    (tmp_path / "bin").mkdir()
    for name, script in {
        "sbatch": f'cat "$1" > {tmp_path}/script; echo Submitted batch job 12',
        "srun": "",
    }.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    options = LauncherOptions(
        folder=tmp_path / "jobs", processes=2, partition="gpu", minutes=90, cpus=6, grace=100
    )
    jobs = [Job(f"run-{index}", ("python", "-c", "")) for index in range(3)]
    launcher("slurm").launch(jobs, options)
    script = (tmp_path / "script").read_text()
    for flag in (
        "array=0-2%2",
        "cpus-per-task=6",
        "gpus-per-node=1",
        "partition=gpu",
        "requeue",
        "signal=USR2@100",
        "time=90",
    ):
        assert f"#SBATCH --{flag}\n" in script
    assert "run-2 is 12_2, output in " in capsys.readouterr().out


def test_slurm_names_what_is_missing(tmp_path, monkeypatch):
    options = LauncherOptions(folder=tmp_path)
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="pip install submitit"):
        patch.setitem(sys.modules, "submitit", None)
        slurm.check([], options)
    pytest.importorskip("submitit", reason="submitit is not installed")
    with pytest.raises(UsageError, match="--minutes=1: must be longer than --grace=120"):
        slurm.check([], replace(options, minutes=1))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"/file/jobs: \S+/file is not a writable directory"):
        slurm.check([], replace(options, folder=tmp_path / "file/jobs"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match='Could not detect "srun"'):
        slurm.check([], options)
    with pytest.raises(UsageError, match="--cluster=pbs: must be slurm or local"):
        slurm.check([], replace(options, cluster="pbs"))


@pytest.mark.system
@pytest.mark.parametrize(
    ("code", "says"),
    [(STOPPED, "stopped by its own deadline; the next launch"), (3, "exit code 3")],
)
def test_a_job_that_ends_by_itself_reports_why(code, says, tmp_path):
    job = ["python", "-c", f"raise SystemExit({code})", f"--workdir={tmp_path}"]
    here = f"from experiments.sweeps.launchers.slurm import Requeued; Requeued(0)({job})"
    command = [sys.executable, "-c", here]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert says in ended.stderr.splitlines()[-1]


@pytest.mark.system
def test_launchers_are_imported_when_used():
    code = (
        "import sys; from experiments.sweeps.launchers.base import launcher; launcher('local'); "
        "assert not {'submitit', 'experiments.sweeps.launchers.slurm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
