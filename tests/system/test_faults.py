"""Faults that really happen, made to happen: nothing lost, nothing silently wrong."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.checkpoint import manager
from repvgg_jax.checkpoint.fused import fused_step
from repvgg_jax.checkpoint.integrity import read_named
from repvgg_jax.cli import fuse
from repvgg_jax.cli import train as train_module
from repvgg_jax.errors import DamagedError, RunError, Stopped
from repvgg_jax.runtime import mesh as mesh_module
from repvgg_jax.runtime.signals import Stopping
from repvgg_jax.training import prefetch, train
from repvgg_jax.training.metrics import read_metrics
from tests.support.runs import equal, tiny_config

ROOT = Path(__file__).parents[2]
ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}


def python(*arguments, code=0, prefix=(), **options):
    done = subprocess.run(
        [*prefix, sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | ONE_DEVICE,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def steps_of(workdir, kind):
    return [row["step"] for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == kind]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of `tiny_config()`: its last state and its folder."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    return train.train(tiny_config(), workdir).state, workdir


def at_batch(monkeypatch, number, action):
    """Do something when that batch, counted from 1, is on its way to the devices."""
    taken, original = 0, mesh_module.shard_batch

    def shard_batch(batch, mesh):
        nonlocal taken
        taken += 1
        return original(action(batch) or batch if taken == number else batch, mesh)

    monkeypatch.setattr(prefetch, "shard_batch", shard_batch)


# --- Killed, stopped, out of time -----------------------------------------------------------------


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_many_times_ends_as_the_undisturbed_one(kills, tmp_path):
    said = python("-m", "tests.support.restarts", tmp_path / "run", kills)
    assert f"killed {kills}" in said
    for step in (manager.steps(tmp_path / "run")[-1], None):
        equal(rj.load(tmp_path / "run", step=step)[1], rj.load(tmp_path / "whole")[1])
    for kind in ("train", "eval"):
        assert steps_of(tmp_path / "run", kind) == steps_of(tmp_path / "whole", kind)
    rows, others = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "whole"))
    assert [row["loss"] for row in rows] == [row["loss"] for row in others]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step(number, undisturbed, tmp_path, monkeypatch):
    at_batch(monkeypatch, 3, lambda batch: os.kill(os.getpid(), number))  # before the second step
    config = tiny_config(train_checkpoint_every=100)
    said = rf"{number.name} after step 2 of 4, which is saved"
    with Stopping() as stopping, pytest.raises(Stopped, match=said):
        train.train(config, tmp_path, stopping)
    assert manager.steps(tmp_path) == [2]
    equal(train.train(config, tmp_path).state.variables, undisturbed[0].variables)


def test_a_signal_during_evaluation_saves_what_was_trained(undisturbed, tmp_path, monkeypatch):
    config = tiny_config(train_eval_every=2, train_eval_batch_size=60, train_checkpoint_every=100)
    stopping = Stopping()
    checks = 0

    def check(mesh):
        nonlocal checks
        checks += 1
        if checks == 5:  # two steps, and three of six batches of the evaluation
            os.kill(os.getpid(), signal.SIGTERM)
        Stopping.check(stopping, mesh)

    monkeypatch.setattr(stopping, "check", check)
    with stopping, pytest.raises(Stopped, match="SIGTERM after step 2 of 4"):
        train.train(config, tmp_path, stopping)
    assert checks == 5
    assert manager.steps(tmp_path) == [2]
    assert steps_of(tmp_path, "eval") == []
    trained = train.train(config, tmp_path)
    equal(trained.state.variables, undisturbed[0].variables)
    assert steps_of(tmp_path, "eval") == [2, 4]  # the one that was cut off is made up for


@pytest.fixture
def interruptible():
    """Also where the tests themselves run in the background, with SIGINT ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_quits():
    with Stopping() as stopping:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGINT"):
            stopping.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # and the former handler is back
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
def test_the_first_interrupt_after_another_signal_does_not_quit():
    with Stopping() as stopping:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGTERM"):
            stopping.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so():
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGTERM)
            stopping.check()
    finally:
        signal.signal(signal.SIGTERM, former)


def test_what_comes_before_the_first_step_is_not_kept_in_reserve(monkeypatch):
    # A slow start, a first step that compiles, steps of 3 and 11 s; 10 s are kept to save in.
    clock = iter((0.0, 60.0, 74.0, 77.0, 88.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stopping = Stopping(100.0)
    for _ in range(3):
        stopping.check()
    with pytest.raises(Stopped, match="the deadline of 100 s"):
        stopping.check()


@pytest.mark.slow
def test_the_certificate_names_the_step_that_was_fused(tmp_path):
    """Not the latest there is, where that one is damaged."""
    train.train(tiny_config(), tmp_path)
    flip(data_files(tmp_path, 4, "variables")[0])
    fuse.run_fuse(None, tmp_path)
    assert fused_step(tmp_path) == 2


@pytest.mark.slow
def test_a_signal_after_the_last_step_says_what_is_saved(tmp_path, monkeypatch):
    original = fuse._fuse

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(train_module, "_fuse", interrupted)
    said = "stopped by SIGTERM after the last step, which is saved; the same command goes on"
    with pytest.raises(Stopped, match=said):
        train_module.run_train(tiny_config(), tmp_path)
    assert not (tmp_path / "report.json").exists()
    monkeypatch.undo()
    train_module.run_train(tiny_config(), tmp_path)
    assert (tmp_path / "report.json").exists()


def test_a_deadline_leaves_time_to_save(tmp_path, monkeypatch):
    original = mesh_module.shard_batch

    def slowly(batch, mesh):
        time.sleep(0.2)
        return original(batch, mesh)

    monkeypatch.setattr(prefetch, "shard_batch", slowly)
    config = tiny_config(train_steps=500, train_checkpoint_every=1000, train_deadline=12.0)
    started = time.monotonic()
    with pytest.raises(Stopped, match=r"the deadline of 12 s after step \d+ of 500"):
        train.train(config, tmp_path)
    assert time.monotonic() - started < 16  # with what comes before the first step
    (step,) = manager.steps(tmp_path)
    assert 0 < step < 60


def test_the_command_exits_0_on_sigterm_and_goes_on(tmp_path):
    command = [sys.executable, "main.py", "--config", "configs/quickstart.py"]
    command += ["--workdir", str(tmp_path / "run"), "--config.train.log_every=1"]
    command += ["--config.train.steps=60", "--config.model.depths=(1,1,1,1)"]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | ONE_DEVICE, stderr=subprocess.PIPE, text=True
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
    assert 0 < step < 60
    python(*command[1:])
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["steps"] == 60
    assert steps_of(tmp_path / "run", "train") == list(range(1, 61))


# --- Disks and files ------------------------------------------------------------------------------

FULL_DISK = """
import sys
from pathlib import Path
import repvgg_jax as rj
from repvgg_jax import checkpoint, train
from repvgg_jax.errors import RunError
from tests.test_train import tiny_config

workdir = Path(sys.argv[1]) / "run"
config = tiny_config(train_steps=40, train_checkpoint_every=1, train_keep=1000)
try:
    train.train(config, workdir)
except RunError as error:
    print("said:", error)
step = checkpoint.steps(workdir)[-1]
net, variables = rj.load(workdir, step=step)
print("opened:", step, "of", workdir / "checkpoints" / str(step))
Path(sys.argv[1], "ballast").unlink()
print("went on to", int(train.train(config, workdir).state.step))
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
    said = python(script, disk, prefix=[*prefix, "env", f"PYTHONPATH={ROOT}"])
    assert "said: a checkpoint could not be written" in said
    assert "(No space left on device); last good checkpoint" in said
    assert "last good checkpoint: " in said
    named = said.split("last good checkpoint: ")[1].split()[0]
    assert f"of {named}" in said.split("opened: ")[1]
    assert "went on to 40" in said


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def data_files(workdir, step, item):
    """The files with numbers in them, the largest first."""
    files = (workdir / f"checkpoints/{step}/{item}").rglob("d/*")
    return sorted(files, key=lambda path: -path.stat().st_size)


@pytest.mark.parametrize("item", ["variables", "optimizer"])
@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    item, damage, undisturbed, tmp_path, caplog
):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    damage(data_files(tmp_path / "run", 4, item)[0])
    if item == "variables":
        with caplog.at_level(logging.WARNING):
            _, variables = rj.load(tmp_path / "run")
        assert "checkpoints/4 cannot be read" in caplog.text
        equal(variables, rj.load(undisturbed[1], step=2)[1])
        with pytest.raises(rj.UsageError, match="checkpoints/4 cannot be read"):
            rj.load(tmp_path / "run", step=4)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        state = train.train(tiny_config(), tmp_path / "run").state
    assert "checkpoints/4 cannot be read" in caplog.text
    assert "going on from step 2" in caplog.text
    equal(state.variables, undisturbed[0].variables)
    equal(state.optimizer, undisturbed[0].optimizer)
    assert manager.steps(tmp_path / "run") == [2, 4]
    assert (tmp_path / "run/damaged/4").is_dir()


def test_where_no_checkpoint_can_be_read_nothing_starts_anew(undisturbed, tmp_path):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    for step in (2, 4):
        truncate(data_files(tmp_path / "run", step, "variables")[0])
    with pytest.raises(
        rj.UsageError, match=r"checkpoints/2 cannot be read .*, nor any other; put a copy back"
    ):
        train.train(tiny_config(), tmp_path / "run")
    assert manager.steps(tmp_path / "run") == [2, 4]


def test_a_save_that_died_half_way_is_no_checkpoint(undisturbed, tmp_path):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / "4").rename(checkpoints / "4.orbax-checkpoint-tmp")
    shutil.rmtree(checkpoints / "4.orbax-checkpoint-tmp/optimizer")
    assert manager.steps(tmp_path / "run") == [2]
    equal(train.train(tiny_config(), tmp_path / "run").state.variables, undisturbed[0].variables)
    assert [path.name for path in checkpoints.glob("*tmp*")] == []


def test_a_workdir_without_write_permission_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    # Root may write anywhere, unless it gives that up.
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    if os.getuid() != 0:
        prefix = []
    elif not shutil.which("setpriv"):
        pytest.skip("root can write everywhere, and there is no setpriv to change that")
    arguments = ["--config", "configs/quickstart.py", "--workdir", tmp_path / "closed/run"]
    said = python("main.py", *arguments, code=2, prefix=prefix)
    assert f"--workdir={tmp_path}/closed/run cannot be written to" in said
    assert "Permission denied" in said


# --- Numbers and clocks ---------------------------------------------------------------------------


def test_a_nan_in_a_batch_stops_before_it_is_saved(undisturbed, tmp_path, monkeypatch):
    def poisoned(batch):
        images = batch["image"].astype(np.float32)
        images[5, 3, 3, 1] = np.nan
        return batch | {"image": images}

    with monkeypatch.context() as patch:
        at_batch(patch, 3, poisoned)
        with pytest.raises(RunError, match=r"step 3: loss nan.*last good checkpoint"):
            train.train(tiny_config(train_checkpoint_every=1), tmp_path)
    good = manager.steps(tmp_path)
    assert good == [1]  # step 2 is let go with it: the fault may lie in what it led to
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rj.load(tmp_path)[1]))
    again = train.train(tiny_config(train_checkpoint_every=1), tmp_path).state
    equal(again.variables, undisturbed[0].variables)


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_a_clock_that_jumps_loses_nothing(jump, undisturbed, tmp_path, monkeypatch):
    """A save measures its patience by the clock, and may give up; then the run says so."""
    clock, ahead = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: clock() + ahead)

    def jumps(batch):
        nonlocal ahead
        ahead += jump

    at_batch(monkeypatch, 3, jumps)
    try:
        train_module.run_train(tiny_config(), tmp_path)
    except RunError as error:
        assert "could not be written" in str(error)  # noqa: PT017 (either is right)
        train_module.run_train(tiny_config(), tmp_path)
    assert ahead == jump
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 < report["wall_seconds"] < 300
    seconds = [row["seconds"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert seconds == sorted(seconds)
    equal(rj.load(tmp_path)[1], undisturbed[0].variables)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EMFILE, "x"), RunError),
        (PermissionError(errno.EACCES, "x"), RunError),
        (MemoryError(), RunError),
        (ValueError("os_error_code='13'"), RunError),
        (FileNotFoundError(errno.ENOENT, "x"), DamagedError),
        (ValueError("torn"), DamagedError),
    ],
    ids=str,
)
def test_what_this_process_cannot_read_now_is_not_taken_for_damaged(error, raised):
    """Damaged checkpoints are moved aside; good ones must not be for a lack of file handles."""

    def read():
        raise error

    with pytest.raises(RunError) as caught:
        read_named(Path("here"), read)
    assert type(caught.value) is raised


def test_a_stop_before_the_first_step_says_that_nothing_is_saved(tmp_path):
    with pytest.raises(Stopped, match="before the first of 4 steps, with nothing to save"):
        train.train(tiny_config(), tmp_path, Stopping(deadline=0.0))
