"""Tests of the command line in process: messages, exit codes, and arguments of modes."""

import logging
import runpy
from pathlib import Path

import pytest

import main
from configs import quickstart
from repvgg_jax.cli import arguments, modes
from repvgg_jax.config.fields import to_json
from repvgg_jax.config.workdir import make_workdir
from repvgg_jax.errors import RunError, Stopped, UsageError

QUICK = ("--config", "configs/quickstart.py")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Prevents changes to the settings of the process that runs the tests."""
    monkeypatch.chdir(Path(main.__file__).parent)
    monkeypatch.setattr(main, "prepare_process", lambda **settings: None)
    monkeypatch.setattr(main, "join_processes", lambda *given: None)
    monkeypatch.setattr(main, "leave_at_interrupt", lambda line: None)


def failing(capsys, *given):
    """Returns the error message of a command that must fail with one line and exit code 2."""
    assert main.main(["main.py", *map(str, given)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([*QUICK, "--config.train.epoch=3"], "train.epoch: no such field; did you mean train.epo"),
        (
            [*QUICK, "--config.trian.epochs=2"],
            "trian.epochs: no such field; did you mean train.",
        ),
        ([*QUICK, "--config.train.epochs.x=2"], "train.epochs.x: no such field; did you mean"),
        ([*QUICK, "--config.optim.lr=1.0"], "optim.lr: no such field; did you mean optim.learning"),
        ([*QUICK, "--config.epochs=3"], "epochs: no such field; did you mean train.epochs?\n"),
        ([*QUICK, "--config.model=x"], "model is a section; set one of its fields, such as --con"),
        ([*QUICK, "--config.train.epochs=many"], "epochs=many: must be a number, such as 40.0\n"),
        ([*QUICK, "--config.train.batch_size=2.5"], "must be an integer, such as 64\n"),
        ([*QUICK, "--config.train.steps=x"], "--config.train.steps=x: must be an integer\n"),
        ([*QUICK, "--config.data.flip=2"], "--config.data.flip=2: must be True or False\n"),
        ([*QUICK, "--config.model.depths=(1,2"], "in parentheses, such as (1, 2, 3, 1)\n"),
        ([*QUICK, "--config.model.depths=(1.5,)"], "depths=[1.5]: each must be an integer and at "),
        ([*QUICK, "--epochs=3"], "--epochs=3; did you mean --config.train.epochs=3?\n"),
        ([*QUICK, "--lr", "0.1"], "--lr; did you mean --config.optim.learning_rate?\n"),
        (["--batch_size=8"], "did you mean --config.train.batch_size=8?\n"),
        ([*QUICK, "epochs=3"], "'epochs=3'; did you mean --config.train.epochs=3?\n"),
        ([*QUICK, "--work_dir=x"], "did you mean --workdir=x?\n"),
        ([*QUICK, "--resume"], "the same command resumes a run\n"),
        (["configs/b1.py"], "write --config configs/b1.py\n"),
        (["--config", "cifar10.py"], "did you mean --config=configs/cifar10.py?\n"),
        (["--config=cifar10:full"], "did you mean --config=configs/cifar10.py:full?\n"),
        (["--config", "configs/quickstart.py:fast"], "no variants; give --config=configs/quick"),
        (["--config", "Makefile"], "a config is a Python file, such as configs/quickstart.py\n"),
        ([*QUICK, "--config.seed=1", "--config.seed=2"], "--config.seed is given twice"),
        ([*QUICK, "--config.model.name=repvgg_c0"], "did you mean repvgg_"),
        (
            ["--config=configs/cifar10.py:full", "--config.model.name=efficientnet_b0"],
            "b0: configs/cifar10.py:full sets model.depths, model.strides, model.widths for "
            "another net; use --config configs/cifar10_nets.py:efficientnet_b0\n",
        ),
        (
            ["--config=configs/cifar10_nets.py", "--config.model.name=deep_plain"],
            "nets.py sets model.stem for another net; use --config configs/cifar10_nets.py:deep_p",
        ),
        (["--config=configs/folder.py", "--config.model.name=resnet18"], "data.data_dir"),
        (
            ["--config=configs/cifar10.py", "--config.model.name=resnet18"],
            "sets model.depths, model.strides, model.widths for another net; use --config "
            "configs/cifar10_nets.py:resnet18\n",
        ),
        (
            [*QUICK, "--config.model.name=vgg11", "--config.model.strides=None"],
            "another net; unset them: --config.model.depths=None --config.model.widths=None\n",
        ),
        ([*QUICK, "--config.model.block=repvg"], "did you mean repvgg"),
        ([*QUICK, "--config.data.source=digit"], "digits"),
        ([*QUICK, "--config.train.log_every=0"], "train.log_every=0: must be at least 1"),
        (
            [*QUICK, "--mode=tain"],
            "train|eval|fuse|export|predict|prepare|import|to_torch|compile|bench|",
        ),
        ([*QUICK, "train"], "unknown argument 'train'; did you mean --mode=train?\n"),
        (["--config", "configs/b9.py"], "--config=configs/b9.py: file not found"),
        (["--config=gs://bucket/b9.py"], "--config=gs://bucket/b9.py is a URL"),
        ([*QUICK, "--mode=import", "--weights=https://host/a.pth"], "download it"),
        ([*QUICK, "--config.init_from=s3://bucket/run"], "init_from=s3://bucket/run is a URL"),
        ([*QUICK, "--config.init_head=drop"], "init_head='drop': choose from keep, reset"),
        ([*QUICK, "--config.data.data_dir=gs://bucket"], "data.data_dir=gs://bucket is a URL"),
        ([*QUICK, "--config.optim.repoptimizer_from=file:///x"], "give the path itself: /x"),
        (["--config", "configs/cifar10.py:fast"], "choose two_cores or full"),
        (["--config.train.steps=3"], "give --config as well"),
        ([*QUICK, "--mode=compile"], "--mode=compile needs --topology; example: "),
        ([*QUICK, "--step=3"], "--mode=train has no option --step; main.py --help lists them\n"),
        ([*QUICK, "--mode=export", "--format=onnx"], "config of the run: leave out --config\n"),
        (
            [*QUICK, "--mode=predict", "--images=a", "--config.model.block=acb"],
            "--mode=predict uses the config of the run: leave out --config.model.block",
        ),
        (["--mode=compile", "--topology=cpu:4"], "--mode=compile needs --config; example: "),
        ([], "--mode=train needs --config; example: python main.py --mode=train --config"),
    ],
)
def test_a_wrong_command_line_is_one_line(given, expected, tmp_path, capsys):
    workdir = ["--workdir", tmp_path / "run"] if given else []
    assert expected in failing(capsys, *given, *workdir)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("return 1 / 0", "line 4: ZeroDivisionError: division by zero"),
        ("config.train.epoch = 3", "line 4: there is no field epoch here; did you mean epochs?"),
        ("config.train.epochs = 'x'", "line 4: TypeError: Could not override field 'epochs'"),
        ("config =", "line 4: invalid syntax"),
        ("return {}", "get_config returns dict; it must return the ConfigDict of"),
        ("config = type(config)({'seed': 1})", "has no model.num_classes, model.depths"),
    ],
)
def test_an_error_in_a_config_file_is_one_line(lines, expected, tmp_path, capsys):
    path = tmp_path / "mine.py"
    start = "from configs import default\ndef get_config():\n    config = default.get_config()\n"
    path.write_text(f"{start}    {lines}\n    return config\n")
    assert f"--config={path}: {expected}" in failing(capsys, "--config", path)


def test_a_syntax_error_in_an_imported_file_names_that_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "half.py").write_text("x =")
    (tmp_path / "mine.py").write_text("import half")
    monkeypatch.syspath_prepend(tmp_path)
    assert f"mine.py: {tmp_path}/half.py, line 1: " in failing(
        capsys, "--config", tmp_path / "mine.py"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([*QUICK, "--config.model.block=repvg"], "unknown block 'repvg': did you mean repvgg"),
        ([*QUICK, "--config.data.source=digit"], "data.source='digit': choose from digits"),
        ([*QUICK, "--config.data.augmentation=crop"], "data.augmentation='crop': choose from"),
        ([*QUICK, "--config.seed=1"], "with a different config (seed: 0 in the run, 1 now); cho"),
        (["--config", "configs/cifar10.py"], "a run of another config, repvgg_a0 on digits (data."),
        (["--config", "configs/folder.py"], "(data.source: digits in the run, folder now, data"),
    ],
    ids=str,
)
def test_in_a_used_workdir_a_misspelled_name_is_reported_first(
    given, expected, tmp_path, capsys, caplog
):
    caplog.set_level(logging.INFO, "repvgg_jax")
    make_workdir(to_json(quickstart.get_config()), tmp_path / "used")
    (tmp_path / "used/checkpoints/4").mkdir(parents=True)
    message = failing(capsys, *given, "--workdir", tmp_path / "used")
    assert expected in message
    assert message.count(" there, ") <= 6
    assert not caplog.messages  # beside the error
    assert "; did you mean " in failing(capsys, "--mode=eval", "--workdir", tmp_path / "use")


def test_a_wrong_workdir_is_reported_before_data_are_opened(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    arguments = [*QUICK, "--config.data.holdout=0.5", "--workdir", tmp_path]
    assert "is not empty and is not a repvgg_jax run" in failing(capsys, *arguments)
    inside = tmp_path / "notes.txt" / "run"
    message = failing(capsys, *QUICK, "--config.data.holdout=0.5", "--workdir", inside)
    assert f"--workdir={inside} cannot be written to (Not a directory)" in message


@pytest.mark.parametrize("name", modes.MODES)
def test_a_missing_flag_is_named_with_an_example(name, capsys):
    message = failing(capsys, f"--mode={name}")
    mode = modes.MODES[name]
    assert f"--mode={name} needs --{mode.needs[0]}" in message
    assert message.endswith(f"example: python main.py --mode={name} {mode.example}\n")


def test_none_unsets_a_field_of_any_type():
    fields = ("model.depths", "model.block", "train.steps", "data.holdout")
    argv = ["main.py", *QUICK, "--config.seed=3", *(f"--config.{field}=None" for field in fields)]
    values = main.define_flags(argv)
    arguments.parse(values, argv)
    config = values["config"].value
    assert [config[group][name] for group, name in (f.split(".") for f in fields)] == [None] * 4
    assert config.seed == 3


@pytest.mark.parametrize("name", modes.MODES)
def test_every_example_has_what_its_mode_needs(name):
    argv = ["main.py", f"--mode={name}", *modes.MODES[name].example.split()]
    values = main.define_flags(argv)
    arguments.parse(values, argv)
    given = arguments.mode_arguments(name, values)
    assert given.keys() == {*modes.MODES[name].needs, *modes.MODES[name].takes}


@pytest.mark.parametrize(
    ("given", "workdir"),
    [
        ([*QUICK], "runs/quickstart"),
        (["--config=configs/cifar10.py:full"], "runs/cifar10_full"),
        (["--config=~/cifar10.py:full"], "runs/cifar10_full"),
        (["--config", "~/cifar10.py"], "runs/cifar10"),
        ([*QUICK, "--workdir=~/runs/x"], "~/runs/x"),
        ([*QUICK, "--workdir=elsewhere"], "elsewhere"),
        ([*QUICK, "--mode=eval"], "runs/quickstart"),
        ([*QUICK, "--mode=bench"], "runs/bench"),
        ([*QUICK, "--mode=compile", "--topology=cpu:8"], None),
    ],
)
def test_the_workdir(given, workdir, monkeypatch):
    monkeypatch.setenv("HOME", str(Path("configs").absolute()))
    argv = ["main.py", *given]
    values = main.define_flags(argv)
    arguments.parse(values, argv)
    given = arguments.mode_arguments(values.mode, values)
    assert given["workdir"] == (None if workdir is None else Path(workdir).expanduser())


@pytest.mark.parametrize(
    ("raised", "code", "expected"),
    [
        (UsageError("wrong"), 2, "error: wrong\n"),
        (RunError("failed"), 3, "error: failed\n"),
        (MemoryError("too large"), 3, "error: this machine's memory is exhausted (too large); end"),
        (Stopped("stopped by SIGTERM"), 0, "stopped by SIGTERM\n"),
        (KeyboardInterrupt(), 130, "interrupted; rerun to start again"),
    ],
    ids=str,
)
def test_exit_codes(raised, code, expected, monkeypatch, capsys):
    def run(config, workdir):
        raise raised

    monkeypatch.setitem(modes.MODES, "train", modes.Mode(run, "", "", takes=("workdir",)))
    assert main.main(["main.py", *QUICK]) == code
    assert capsys.readouterr().err.startswith(expected)


@pytest.mark.parametrize("name", modes.MODES)
def test_only_training_is_advised_about_training(name):
    advice = modes.MODES[name].if_exhausted
    assert ("train.batch_size" in advice) == ("rerun resumes" in advice) == (name == "train")


def test_an_interrupt_says_what_was_saved(tmp_path):
    train = modes.MODES["train"]
    assert train.when_interrupted(tmp_path).endswith("nothing was saved yet; rerun to start again")
    (tmp_path / "checkpoints/100").mkdir(parents=True)
    assert train.when_interrupted(tmp_path).endswith("resume from the last checkpoint")


def test_a_second_run_in_one_process(capsys):
    """As `%run main.py` twice in a notebook."""
    for _ in range(2):
        command = runpy.run_path("main.py")["main"]
        assert command(["main.py", *QUICK, "--workdir=gs://bucket/run"]) == 2
        assert "mount the bucket" in capsys.readouterr().err


def test_help_fits_a_screen_and_lists_every_mode(capsys):
    assert main.main(["main.py", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    for name, mode in modes.MODES.items():
        assert any(line.split() == [f"--mode={name}", *mode.example.split()] for line in lines)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (QUICK, "data.source=digits needs no preparation"),
        (
            ["--config", "configs/cifar10.py", "--config.data.name=mnist"],
            "supports cifar10, cifar100",
        ),
    ],
)
def test_preparing_what_cannot_be_prepared(given, expected, capsys):
    assert expected in failing(capsys, "--mode=prepare", *given)
