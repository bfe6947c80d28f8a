"""Jobs on this machine: devices, signals and failures."""

import os
from dataclasses import replace

import jax
import pytest

from experiments.sweeps import run, workdirs
from experiments.sweeps.jobs import Job
from experiments.sweeps.launchers import local
from experiments.sweeps.launchers.base import LauncherOptions
from experiments.sweeps.launchers.local import cores, device_environment, launch
from repvgg_jax.bench.aot import lower_step
from repvgg_jax.errors import RunError, Stopped, UsageError
from repvgg_jax.runtime import devices
from repvgg_jax.runtime.devices import devices_here
from tests.support.sweep_runs import flags


def job(tmp_path, name, code):
    return Job(name, ("python", "-c", code, f"--workdir={tmp_path / name}"))


@pytest.mark.system
def test_a_failed_job_does_not_keep_the_others_from_running(tmp_path, capsys):
    jobs = [job(tmp_path, "bad", "print('first'); raise ValueError('the last line')")]
    jobs += [job(tmp_path, f"good{i}", "print('fine')") for i in range(2)]
    with pytest.raises(RunError, match="1 of 3 runs failed: bad: ValueError: the last line"):
        launch(jobs, LauncherOptions(processes=2))
    assert "3 runs: 2 finished, 1 failed" in capsys.readouterr().out
    assert (tmp_path / "good1" / "log.txt").read_text() == "fine\n"
    assert workdirs.last_error(tmp_path / "bad") == "ValueError: the last line"
    assert (tmp_path / "bad" / workdirs.ERROR_FILE).exists()  # it waits for --retry_failed
    launch([job(tmp_path, "bad", "print('better')")], LauncherOptions())
    assert workdirs.last_error(tmp_path / "bad") == "better"


@pytest.mark.system
def test_a_job_that_was_killed_has_failed(tmp_path):
    bad = job(tmp_path, "bad", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RunError, match="bad: killed by SIGKILL"):
        launch([bad], LauncherOptions())
    assert workdirs.last_error(tmp_path / "bad").startswith("killed by SIGKILL")


@pytest.mark.system
def test_a_signal_is_passed_on_and_no_other_job_starts(tmp_path):
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(75)))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)"
    )
    jobs = [job(tmp_path, "one", code), job(tmp_path, "two", "print('never')")]
    with pytest.raises(Stopped, match="SIGTERM; rerun to resume"):
        launch(jobs, LauncherOptions(processes=1))
    assert (tmp_path / "one" / "log.txt").read_text() == "saved\n"
    assert not (tmp_path / "two").exists()


def test_jobs_are_spread_over_the_devices():
    assert devices_here({"CUDA_VISIBLE_DEVICES": "2,3"}) == ("cuda", ["2", "3"])
    assert devices_here({"CUDA_VISIBLE_DEVICES": ""}) == ("cpu", [])
    assert devices_here({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0"}) == ("cpu", [])
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    assert devices_here(hidden | {"JAX_PLATFORMS": "cuda"}) == ("cuda", [])  # an error for JAX
    assert devices_here(hidden | {"JAX_PLATFORMS": "cuda,cpu"}) == ("cpu", [])
    given = [device_environment("cuda", ["2", "3"], slot, 4, {}) for slot in range(4)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in given] == ["2", "3", "2", "3"]
    assert device_environment("tpu", ["0", "1"], 1, 2, {})["TPU_VISIBLE_CHIPS"] == "1"
    assert device_environment("cpu", [], 1, 2, {}) == {}


def test_jobs_on_a_gpu_share_its_memory():
    def shares(slots, **given):
        of_slots = [device_environment("cuda", ["0", "1"], s, slots, given) for s in range(slots)]
        return [one.get("XLA_CLIENT_MEM_FRACTION") for one in of_slots]

    assert shares(2) == [None, None]
    assert shares(3) == ["0.450", None, "0.450"]
    assert shares(6) == ["0.300"] * 6
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        assert shares(6, **{name: "0.1"}) == [None] * 6  # the user's; JAX refuses both at once
        assert shares(6, **{name: ""}) == ["0.300"] * 6


def test_device_files_are_counted(monkeypatch, tmp_path):
    """A container may have the host's nvidia3 only, which is CUDA's device 0 there."""
    monkeypatch.setattr(devices, "_DEVICE_FILES", (("cuda", str(tmp_path), r"nvidia\d+"),))
    for name in ("nvidia3", "nvidia11", "nvidiactl"):
        (tmp_path / name).touch()
    assert devices_here({}) == ("cuda", ["0", "1"])


def test_a_tpu_chip_has_one_process(monkeypatch):
    monkeypatch.setattr(local, "devices_here", lambda environment: ("tpu", ["0", "1"]))
    local.check([], LauncherOptions(processes=2))
    with pytest.raises(UsageError, match="--processes=4: must be at most 2"):
        local.check([], LauncherOptions(processes=4))
    monkeypatch.setattr(local, "devices_here", lambda environment: ("tpu", []))
    with pytest.raises(UsageError, match="JAX_PLATFORMS=tpu, but this machine has no such device"):
        local.check([], LauncherOptions())


@pytest.mark.system
def test_jobs_on_a_cpu_share_no_core(tmp_path, capsys):
    mine = os.sched_getaffinity(0)
    assert cores(0, 1) == cores(0, len(mine) + 1) == mine
    if len(mine) == 1:
        pytest.skip("one core cannot be divided")
    shares = [cores(slot, 2) for slot in range(2)]
    assert shares[0] | shares[1] == mine
    assert not shares[0] & shares[1]
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    jobs = [replace(job(tmp_path, f"j{i}", code), programs="same") for i in range(2)]
    launch(jobs, LauncherOptions(processes=2))
    assert "waits" not in capsys.readouterr().out  # they share no device
    text = {(tmp_path / f"j{i}" / "log.txt").read_text().strip() for i in range(2)}
    assert text == {str(sorted(share)) for share in shares}
    launch([job(tmp_path, "alone", code)], LauncherOptions(processes=2))
    assert (tmp_path / "alone/log.txt").read_text().strip() == str(sorted(mine))
    assert os.sched_getaffinity(0) == mine


# The first run of a variant, which compiles until the other variant's has started.
FIRST = """
import os, time
from pathlib import Path

def wait_for(name):
    until = time.monotonic() + 60
    while not Path(name).exists():
        assert time.monotonic() < until, f"{name} has not started"
        time.sleep(0.05)

os.chdir("FOLDER")  # in which each run has a folder
wait_for("other-s0")
if CACHED:
    wait_for("waits")
    assert not Path("first-s1").exists(), "it has not waited"
    print("first step after 1.0 s, including 0.5 s of compilation", flush=True)
wait_for("first-s1")
"""


@pytest.mark.system
@pytest.mark.parametrize("cached", [True, False])
def test_runs_on_one_gpu_wait_for_programs_that_another_compiles(
    cached, tmp_path, monkeypatch, capsys
):
    """If JAX does not cache programs, they do not wait. A run that fails ends the waiting."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    full = "error: the device's memory is exhausted"
    codes = {
        "first-s0": FIRST.replace("FOLDER", str(tmp_path)).replace("CACHED", str(cached)),
        "full-s0": f"import sys; sys.exit({full!r})",
        "first-s1": "pass",
        "full-s1": "pass",
        "other-s0": "import os; print(os.environ['XLA_CLIENT_MEM_FRACTION'])",
    }
    jobs = [
        replace(job(tmp_path, name, code), programs=name.split("-")[0])
        for name, code in codes.items()
    ]
    (tmp_path / "first-s0").mkdir()
    (tmp_path / "first-s0/log.txt").write_text("first step after 2.0 s\n")  # of an earlier start

    def show(line, **options):
        print(line, **options)
        if "waits until" in line:
            (tmp_path / "waits").touch()

    monkeypatch.setattr(local, "print", show, raising=False)
    jax.config.update("jax_enable_compilation_cache", cached)
    try:
        with pytest.raises(RunError, match=f"1 of 5 runs failed: full-s0: {full}$"):
            launch(jobs, LauncherOptions(processes=3))
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    text = capsys.readouterr().out
    assert ("first-s1 waits until first-s0 has compiled their programs\n" in text) == cached
    assert text.endswith("5 runs: 4 finished, 1 failed\n")
    assert (tmp_path / "other-s0/log.txt").read_text() == "0.300\n"


@pytest.mark.medium
def test_seeds_of_a_variant_share_their_programs():
    options, runs, _ = run.parse(["branches", "--seeds=0,1", "--only=none,both", *flags()])
    jobs = [run.job_of(one, options) for one in runs]
    assert [one.programs for one in jobs] == ["none", "both", "none", "both"]
    steps = [lower_step(one.config(), jax.devices()[:1])[0].as_text() for one in runs[::2]]
    assert steps[0] == steps[1]
