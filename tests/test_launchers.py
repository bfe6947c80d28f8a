"""Jobs by submitit's local executor, preempted for real, and JobSets by the published schema."""

import copy
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

import repvgg_jax as rj
from experiments.launchers import LAUNCHERS, Job, LauncherOptions
from experiments.launchers import slurm as slurm_launcher
from experiments.launchers.kubernetes import job_set, slice_of
from repvgg_jax.errors import RunError

SCHEMA = json.loads((Path(__file__).parent / "data/jobset.json").read_text())

# Counts its starts; the first one waits to be told to stop, saves, and says that it did.
RUN = """
import os, pathlib, signal, sys, time
path = pathlib.Path(sys.argv[1])
starts = len(path.read_text().split()) if path.exists() else 0
def stop(*_):
    path.write_text(path.read_text() + " saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
path.with_name("parent").write_text(str(os.getppid()))
path.write_text("started" if not starts else path.read_text() + " resumed")
while not starts:
    time.sleep(0.05)
"""


def job(name="branches-both-s0-1a2b3c4d5e6f", *words):
    command = ("python", "-m", "experiments.run_one", "--workdir=/runs/sweeps/1a2b3c4d5e6f")
    return Job(name, (*command, "--results=/runs/results", *words), None)


def on_gke(**fields):
    given = dict(image="registry/repvgg:1", queue="tpus", volume="runs", slice="v5e:4x4")
    return LauncherOptions(**given | fields)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_preempted_job_saves_and_is_queued_again(tmp_path):
    path = tmp_path / "starts"
    command = ("python", "-c", RUN, str(path))
    options = LauncherOptions(cluster="local", logs=tmp_path / "logs", minutes=30)
    [handle] = slurm_launcher.submit([Job("a", command, None)], options)
    until(lambda: path.exists() and path.read_text() == "started")
    # As slurm does before it takes a node away.
    os.kill(int((tmp_path / "parent").read_text()), signal.SIGUSR2)
    handle.wait()
    assert handle.exception() is None
    assert path.read_text() == "started saved resumed"


def test_a_failed_job_is_named_and_the_others_run(tmp_path):
    fails = Job("fails", ("python", "-c", "import sys; sys.exit(3)"), None)
    works = Job("works", ("python", "-c", f"open({str(tmp_path / 'done')!r}, 'w')"), None)
    options = LauncherOptions(cluster="local", logs=tmp_path / "logs")
    with pytest.raises(RunError, match=r"1 of 2 runs failed: fails: .*exit code 3"):
        LAUNCHERS["slurm"]([fails, works], options)
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("cluster", "missing", "words"),
    [
        ("slurm", "submitit", "pip install submitit"),
        ("slurm", "sbatch", "no sbatch is here"),
        ("sulrm", None, "slurm or local"),
    ],
)
def test_what_slurm_lacks_is_said(cluster, missing, words, tmp_path, monkeypatch):
    if missing == "submitit":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(rj.UsageError, match=words):
        LAUNCHERS["slurm"]([job()], LauncherOptions(cluster=cluster, logs=tmp_path))


def test_a_command_runs_with_the_interpreter_that_submits():
    assert slurm_launcher._argv(job())[0] == sys.executable


def valid(manifest):
    jsonschema = pytest.importorskip("jsonschema")
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(manifest)


@pytest.mark.parametrize("slice_", ["v5e:1x1", "v5e:4x4", "v4:2x2x4", "v5p:4x4x8", "v6e:16x16"])
def test_job_sets_are_what_the_published_schema_takes(slice_):
    assert valid(job_set(job(), on_gke(slice=slice_)))


@pytest.mark.parametrize(
    "mutant",
    [
        lambda spec: spec.update(suspended=spec.pop("suspend")),
        lambda spec: spec["failurePolicy"].update(maxRestarts="20"),
        lambda spec: spec["replicatedJobs"][0].pop("template"),
        lambda spec: spec["replicatedJobs"][0]["template"]["spec"].update(parallellism=4),
        lambda spec: spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"].update(
            restartPolicy="never"
        ),
    ],
)
def test_the_schema_refuses_a_field_that_is_wrong(mutant):
    manifest = job_set(job(), on_gke())
    broken = copy.deepcopy(manifest)
    mutant(broken["spec"])
    assert valid(manifest)
    assert not valid(broken)


def test_a_slice_has_its_hosts_and_chips():
    assert slice_of("v5e:16x16") == ("tpu-v5-lite-podslice", "16x16", 64, 4)
    assert slice_of("v5e:1x1") == ("tpu-v5-lite-podslice", "1x1", 1, 1)
    spec = job_set(job(), on_gke(slice="v4:2x2x4"))["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (spec["parallelism"], spec["completions"]) == (4, 4)
    [container] = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("branches", {"slice": "v9:2x2"}, "--slice=v9:2x2"),
        ("branches", {"slice": "v5e:2x2x2"}, "2 axes, such as 4x4"),
        ("branches", {"slice": "v5e:3x3"}, "9 chips are no whole hosts of 4"),
        ("branches", {"image": None, "queue": None}, "needs --image, --queue"),
        ("branches", {"mount": Path("/elsewhere")}, "not on the volume"),
        ("Branches", {}, "no name for a JobSet"),
        ("b" * 50, {"slice": "v5e:16x16"}, "48 at most"),
    ],
)
def test_what_makes_no_job_set_is_said(name, fields, words):
    with pytest.raises(rj.UsageError, match=words):
        job_set(job(name), on_gke(**fields))


def test_manifests_are_written_one_a_run(tmp_path, capsys):
    yaml = pytest.importorskip("yaml")
    jobs = [job("a-s0"), job("b-s0")]
    LAUNCHERS["kubernetes"](jobs, on_gke(manifests=tmp_path))
    read = yaml.safe_load((tmp_path / "b-s0.yaml").read_text())
    assert read == job_set(jobs[1], on_gke(manifests=tmp_path))
    assert f"-f {tmp_path}/a-s0.yaml" in capsys.readouterr().out
