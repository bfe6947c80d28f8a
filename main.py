"""python main.py --mode prepare --config configs/b1.py [--config.data.manual_dir=<archives>]
python main.py --config configs/b1.py [--workdir runs/b1] [--mode train | eval | fuse]
python main.py --mode import --config configs/a0.py --weights RepVGG-A0-train.pth
python main.py --mode to_torch --workdir runs/a0 --weights a0.pth [--layout timm] [--fused]
python main.py --mode bench_data --config configs/a0.py --config.data.source=folder
python main.py --mode bench --config configs/b1.py --config.model.dtype=bfloat16
python main.py --mode compile --config configs/b1.py --topology v5e:4x4

Any field of configs/default.py can be given: --config.train.epochs=3
"""

import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from repvgg_jax.bench.input import run_bench_data
from repvgg_jax.bench.models import run_bench
from repvgg_jax.cli import MODES
from repvgg_jax.cli.compile import run_compile
from repvgg_jax.cli.prepare import run_prepare
from repvgg_jax.cli.pytorch import run_import, run_to_torch
from repvgg_jax.config.fields import unknown_field
from repvgg_jax.errors import RunError, Stopped, UsageError
from repvgg_jax.runtime.processes import join_processes, leaving_at_once, prepare_process

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", help_string="a file of configs/, or your own")
OTHER_MODES = ["prepare", "import", "to_torch", "compile", "bench", "bench_data"]
MODE = flags.DEFINE_enum("mode", "train", [*MODES, *OTHER_MODES], "what to do")
WORKDIR = flags.DEFINE_string("workdir", None, "of the run; runs/<name of the config> by default")
WEIGHTS = flags.DEFINE_string("weights", None, "file that import reads and to_torch writes")
LAYOUT = flags.DEFINE_enum("layout", "official", ["official", "timm"], "names of to_torch")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, of several")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "processes of the run")
PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "of this process, from 0 on")
TOPOLOGY = flags.DEFINE_string("topology", None, "compile: the devices, v5e:4x4, cpu:8, ...")
FUSED = flags.DEFINE_bool("fused", False, "to_torch: the fused weights")


def parse_flags(argv: list[str]) -> list[str]:
    """Absl's parsing, with one line and exit code 2 for whatever is wrong with the command line."""
    given = [arg.split("=")[0] for arg in argv if arg.startswith("--config.")]
    if twice := [name for name in given if given.count(name) > 1]:
        fail(UsageError(f"{twice[0]} is given twice; give it once"))
    try:
        return FLAGS(argv)
    except (flags.Error, UsageError) as error:  # the latter from the config file itself
        message = str(error)
        if "Unknown command line flag 'config." in message:
            message = "--config.field=value changes a field of a --config FILE; give that too"
        if "Traceback" in message:  # config_flags quotes the whole of what a config file raised
            message = f"{given_config(argv)}: {message.strip().splitlines()[-1]}"
    except AttributeError as error:  # an override of a field that the config doesn't have
        overrides = [arg for arg in argv if arg.lstrip("-").startswith("config.")]
        sys.argv = [arg for arg in argv if arg not in overrides]  # where config_flags looks
        FLAGS(sys.argv)
        fields = [arg.lstrip("-").removeprefix("config.") for arg in overrides]
        message = unknown_field(CONFIG.value, fields) or str(error)
    fail(UsageError(" ".join(message.split())))


def given_config(argv: list[str]) -> str:
    """What stands after `--config`."""
    return next(
        (value for arg, value in zip(argv, [*argv[1:], ""], strict=True) if arg == "--config"),
        next((arg for arg in argv if arg.startswith("--config=")), "--config"),
    )


def workdir() -> Path:
    """`--workdir`, or `runs/cifar10_full` for `--config configs/cifar10.py:full`."""
    if FLAGS["config"].value is None:
        if WORKDIR.value is None:
            raise UsageError("--config says what to run, or --workdir which run to go on with")
        return Path(WORKDIR.value)
    file, *variant = config_flags.get_config_filename(FLAGS["config"]).split(":")
    return Path(WORKDIR.value or f"runs/{'_'.join([Path(file).stem, *variant])}")


def check_config() -> None:
    """Raises UsageError for a config file that isn't there; reading it would be a traceback."""
    if FLAGS["config"].value is not None:
        file = config_flags.get_config_filename(FLAGS["config"]).split(":")[0]
        if not Path(file).is_file():
            raise UsageError(f"--config={file}: no such file; configs/ holds those that come along")


def fail(error: RunError) -> NoReturn:
    """Say what is wrong in one line."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def run_mode() -> None:
    """What `--mode` says."""
    if MODE.value == "prepare":
        run_prepare(CONFIG.value)
    elif MODE.value == "import":
        run_import(CONFIG.value, workdir(), WEIGHTS.value)
    elif MODE.value == "to_torch":
        run_to_torch(workdir(), WEIGHTS.value, LAYOUT.value, FUSED.value)
    elif MODE.value == "compile":
        run_compile(CONFIG.value, TOPOLOGY.value, workdir() if WORKDIR.value else None)
    elif MODE.value == "bench":
        run_bench(CONFIG.value, Path(WORKDIR.value or "runs/bench"))
    elif MODE.value == "bench_data":
        run_bench_data(CONFIG.value, Path(WORKDIR.value) if WORKDIR.value else None)
    else:
        MODES[MODE.value](CONFIG.value, workdir())


def main(argv: list[str]) -> None:
    """Run the mode, as one process of several where told so, and say how it ended."""
    logging.set_verbosity(logging.WARNING)
    try:
        if argv[1:]:
            raise UsageError(
                f"{argv[1]!r} is no flag; write --config FILE and --config.field=value"
            )
        check_config()
        prepare_process(
            deterministic=CONFIG.value is not None and CONFIG.value.train.deterministic,
            keep_compiled=MODE.value not in ("prepare", "compile", "bench"),
        )
        join_processes(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_INDEX.value)
        with leaving_at_once():
            run_mode()
    except Stopped as stop:
        print(stop, file=sys.stderr)
    except RunError as error:
        fail(error)
    except KeyboardInterrupt:
        last = "finished file" if MODE.value == "prepare" else "checkpoint"
        print(f"interrupted: the same command goes on from the last {last}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
