"""Tests of a run on two processes of two devices each, over gloo, and of the death of one."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.checkpoint import manager
from repvgg_jax.training.metrics import read_metrics
from tests.support.commands import on_devices
from tests.support.runs import equal, tiny_config, train

ROOT = Path(__file__).parents[2]
TINY = ["--config", "configs/quickstart.py", "--config.model.depths=(1,2)"]
TINY += ["--config.model.widths=(4,8)", "--config.model.strides=(2,1)"]
TINY += ["--config.train.batch_size=32", "--config.optim.warmup_epochs=0.0"]
TINY += ["--config.mesh.fsdp=2", "--config.mesh.min_size=64"]
ENDLESS = [*TINY, "--config.train.steps=100000", "--config.train.log_every=1"]


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Pair:
    """The two processes of a command, which are always killed at the end."""

    def __init__(self, folder, *arguments):
        address = f"--coordinator=127.0.0.1:{free_port()}"
        self.logs = [folder / f"process{index}.log" for index in range(2)]
        self.processes = []
        for index, log in enumerate(self.logs):
            command = [sys.executable, "main.py", address, "--num_processes=2"]
            command += [f"--process_index={index}", *map(str, arguments)]
            with log.open("w") as out:
                run = subprocess.Popen(command, cwd=ROOT, env=on_devices(2), stdout=out, stderr=out)
            self.processes.append(run)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for run in self.processes:
            run.kill()
            run.wait()

    def wait(self, seconds=240):
        """Waits for both processes and returns their exit codes."""
        return [run.wait(seconds) for run in self.processes]

    def wait_for(self, text, seconds=120):
        """Waits until the log of process 0 contains a text."""
        end = time.monotonic() + seconds
        while text not in self.logs[0].read_text():
            assert time.monotonic() < end, self.output(0)
            assert self.processes[0].poll() is None, self.output(0)
            time.sleep(0.05)

    def output(self, index):
        return self.logs[index].read_text()


FAILS = """
import sys
from pathlib import Path
from repvgg_jax.runtime import processes
from repvgg_jax.runtime.processes import join_processes, exiting_on_error, sync_processes
processes.HEARTBEAT_SECONDS = 4
join_processes(sys.argv[1], 2, int(sys.argv[2]))
with exiting_on_error(lambda error: Path(sys.argv[3]).write_text(str(error))):
    with exiting_on_error():
        if sys.argv[2] == "1":
            raise ValueError("of process 1")
        sync_processes("never")
"""


WARNS = """
import sys
import jax
from repvgg_jax.runtime.processes import join_processes, warn_once
join_processes(sys.argv[1], 2, int(sys.argv[2]))
warn_once("3 files of %s, process %d", "data", jax.process_index())
"""


def test_a_warning_about_the_data_is_logged_by_one_process():
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WARNS, address, f"{i}"], cwd=ROOT, stderr=subprocess.PIPE
        )
        for i in range(2)
    ]
    try:
        first, second = (process.communicate(timeout=180)[1] for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert first.count(b"3 files of data, process 0") == 1
    assert b"3 files" not in second


def test_a_failing_process_reports_its_error_and_the_others_none(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FAILS, address, f"{i}", tmp_path / f"{i}"], cwd=ROOT
        )
        for i in range(2)
    ]
    try:
        assert processes[1].wait(180) == 3
        assert (tmp_path / "1").read_text() == "of process 1"
        assert processes[0].wait(180) != 0
        assert not (tmp_path / "0").exists()
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def two_by_two(tmp_path_factory):
    """Returns the folder and the logs of a whole run on two processes with two devices each."""
    folder = tmp_path_factory.mktemp("two")
    arguments = [*TINY, "--config.train.steps=4", "--config.train.checkpoint_every=2"]
    arguments += ["--config.train.eval_every=100", "--config.train.log_every=2"]
    arguments += ["--workdir", folder / "run"]
    with Pair(folder, *arguments) as pair:
        assert pair.wait() == [0, 0], pair.output(0) + pair.output(1)
        output = [pair.output(0), pair.output(1)]
    return folder / "run", output


def test_two_by_two_is_one_device(two_by_two, tmp_path):
    """Sums in another order differ by 1e-7 of their size; an error would differ by 1e-2."""
    workdir, output = two_by_two
    one = train(tiny_config(mesh_data=1, train_log_every=2), tmp_path / "one").state
    curves = [
        [(row["step"], row["loss"]) for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (workdir, tmp_path / "one")
    ]
    np.testing.assert_allclose(*curves, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        rj.load(workdir)[1],
        jax.device_get(one.eval_variables),
    )
    report = json.loads((workdir / "report.json").read_text())
    assert report["device"].endswith("x4")
    assert report["eval_count"] == 360
    confusion = np.array(report["confusion"]["fused"])
    assert confusion.sum() == 360
    assert confusion.trace() == pytest.approx(360 * report["top1"]["fused"])
    assert report["fusion"]["max_relative_error"] < 1e-5
    assert "train form" in output[0]
    assert "train form" not in output[1]


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (4, 1), (2, 2)])
def test_their_checkpoint_resumes_on_any_devices(data, fsdp, two_by_two, tmp_path):
    shutil.copytree(two_by_two[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    changes = {"mesh_data": data, "mesh_fsdp": fsdp, "mesh_min_size": 64}
    state = train(tiny_config(**changes), tmp_path / "run").state
    assert int(state.step) == 4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        jax.device_get(state.eval_variables),
        rj.load(two_by_two[0])[1],
    )


def test_one_device_opens_what_two_by_two_saved(two_by_two):
    """In a separate process, without their devices and coordinator."""
    code = (
        "import sys, jax, repvgg_jax as rj\n"
        "net, variables = rj.load(sys.argv[1])\n"
        "plain, fused = rj.load(sys.argv[1], fused=True)\n"
        "x = jax.numpy.ones((2, 8, 8, 3))\n"
        "print(abs(net.apply(variables, x) - plain.apply(fused, x)).max() < 1e-4)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, two_by_two[0]],
        cwd=ROOT,
        env=on_devices(1),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("dies", [0, pytest.param(1, marks=pytest.mark.slow)])  # 0 coordinates
def test_if_one_dies_the_other_ends_with_an_error(dies, tmp_path):
    arguments = [*ENDLESS, "--config.train.checkpoint_every=5"]
    with Pair(tmp_path, *arguments, "--workdir", tmp_path / "run") as pair:
        pair.wait_for(" 7/100000")
        started = time.monotonic()
        # Checkpoints are written in the background: the one of step 5 may not be complete yet.
        while not manager.steps(tmp_path / "run") and time.monotonic() - started < 60:
            time.sleep(0.1)
        started = time.monotonic()
        pair.processes[dies].kill()
        assert pair.processes[1 - dies].wait(180) not in (0, None)
        assert time.monotonic() - started < 60
        output = pair.output(1 - dies)
    assert "another process exited" in output or "another task died" in output
    assert "Traceback" not in output
    step = manager.steps(tmp_path / "run")[-1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rj.load(tmp_path / "run")[1]))
    assert step >= 5


def test_one_told_to_stop_stops_both_after_the_same_step(tmp_path):
    arguments = [*ENDLESS, "--config.train.checkpoint_every=100000"]
    with Pair(tmp_path, *arguments, "--workdir", tmp_path / "run") as pair:
        pair.wait_for(" 3/100000")
        pair.processes[1].send_signal(signal.SIGTERM)
        assert pair.wait(180) == [0, 0], pair.output(0) + pair.output(1)
        (step,) = manager.steps(tmp_path / "run")
        assert f"stopped by another process after step {step} of" in pair.output(0)
        assert f"stopped by SIGTERM after step {step} of" in pair.output(1)


def test_a_damaged_checkpoint_is_passed_over_by_both(two_by_two, tmp_path):
    shutil.copytree(two_by_two[0], tmp_path / "run")
    largest = max(
        (tmp_path / "run/checkpoints/4/variables").rglob("d/*"), key=lambda p: p.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[:-1])
    (tmp_path / "run/report.json").unlink()  # a finished run reads no checkpoint
    arguments = [*TINY, "--config.train.steps=4", "--config.train.checkpoint_every=2"]
    with Pair(tmp_path, *arguments, "--workdir", tmp_path / "run") as pair:
        assert pair.wait() == [0, 0], pair.output(0) + pair.output(1)
        assert "checkpoints/4 cannot be read" in pair.output(0)
    equal(rj.load(tmp_path / "run")[1], rj.load(two_by_two[0])[1])
