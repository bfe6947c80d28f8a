"""Jobs on this machine: devices, signals and failures."""

import os

import pytest

from experiments.sweeps import workdirs
from experiments.sweeps.jobs import Job
from experiments.sweeps.launchers import local
from experiments.sweeps.launchers.base import LauncherOptions
from experiments.sweeps.launchers.local import cores, device_environment, launch
from repvgg_jax.errors import RunError, Stopped, UsageError
from repvgg_jax.runtime.devices import devices_here


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
    given = [device_environment("cuda", ["2", "3"], slot, 4) for slot in range(4)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in given] == ["2", "3", "2", "3"]
    assert {one["XLA_PYTHON_CLIENT_MEM_FRACTION"] for one in given} == {"0.45"}
    assert device_environment("tpu", ["0", "1"], 1, 2)["TPU_VISIBLE_CHIPS"] == "1"


def test_a_tpu_chip_has_one_process(monkeypatch):
    monkeypatch.setattr(local, "devices_here", lambda environment: ("tpu", ["0", "1"]))
    local.check([], LauncherOptions(processes=2))
    with pytest.raises(UsageError, match="--processes=4: must be at most 2"):
        local.check([], LauncherOptions(processes=4))
    monkeypatch.setattr(local, "devices_here", lambda environment: ("tpu", []))
    with pytest.raises(UsageError, match="JAX_PLATFORMS=tpu, but this machine has no such device"):
        local.check([], LauncherOptions())


@pytest.mark.system
def test_jobs_on_a_cpu_share_no_core(tmp_path):
    mine = os.sched_getaffinity(0)
    assert cores("cpu", 0, 1) == cores("cuda", 0, 2) == cores("cpu", 0, len(mine) + 1) == set()
    if len(mine) == 1:
        pytest.skip("one core cannot be divided")
    shares = [cores("cpu", slot, 2) for slot in range(2)]
    assert shares[0] | shares[1] == mine
    assert not shares[0] & shares[1]
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    launch([job(tmp_path, f"j{i}", code) for i in range(2)], LauncherOptions(processes=2))
    text = {(tmp_path / f"j{i}" / "log.txt").read_text().strip() for i in range(2)}
    assert text == {str(sorted(share)) for share in shares}
