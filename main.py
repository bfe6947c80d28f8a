"""Trains, evaluates, fuses, converts and measures RepVGG models: `python main.py --help`."""

import importlib.util
import signal
import sys
from functools import partial

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until `leave_at_interrupt`: an import may lose a KeyboardInterrupt, and the command would run.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

if absent := [name for name in ("absl", "flax", "jax") if importlib.util.find_spec(name) is None]:
    print(
        f"error: {sys.executable} has no {absent[0]}: activate the environment in this shell "
        "(source .venv/bin/activate), or make it first (make setup)",
        file=sys.stderr,
    )
    sys.exit(2)

from absl import flags
from ml_collections import config_flags

from repvgg_jax.cli.arguments import help_text, mode_arguments, naming_the_config, parse
from repvgg_jax.cli.modes import MODES
from repvgg_jax.errors import RunError, Stopped
from repvgg_jax.interop.layouts import LAYOUTS
from repvgg_jax.runtime.devices import explaining_absent_devices, explaining_exhausted_memory
from repvgg_jax.runtime.messages import print_error, show_messages
from repvgg_jax.runtime.output import run_with_output
from repvgg_jax.runtime.processes import exiting_on_error, join_processes, prepare_process
from repvgg_jax.runtime.signals import leave_at_interrupt


def define_flags(argv: list[str]) -> flags.FlagValues:
    """Returns the unparsed flags, including one for each field of the config file in `argv`."""
    values = flags.FlagValues()
    here = {"flag_values": values}
    config_flags.DEFINE_config_file("config", None, "config file[:variant]", sys_argv=argv, **here)
    flags.DEFINE_enum("mode", "train", list(MODES), "command to run", **here)
    flags.DEFINE_string("workdir", None, "folder of the run; runs/<config> by default", **here)
    flags.DEFINE_string("weights", None, "input file of import, output file of to_torch", **here)
    flags.DEFINE_enum("layout", None, list(LAYOUTS), "to_torch: naming", **here)
    flags.DEFINE_bool("fused", False, "to_torch: write the fused weights", **here)
    flags.DEFINE_list("format", None, "export: formats, such as onnx,stablehlo", **here)
    flags.DEFINE_integer("opset", None, "export: opset of ONNX; default: 17", **here)
    flags.DEFINE_bool("dynamic_size", False, "export: images of any height and width", **here)
    flags.DEFINE_bool("preprocess", False, "export: models that take uint8 images", **here)
    flags.DEFINE_bool("allow_train_form", False, "export: a net that cannot be fused", **here)
    flags.DEFINE_integer("step", None, "fuse, eval, export, predict: step; default: latest", **here)
    flags.DEFINE_string("images", None, "predict: an image, or a folder of images", **here)
    flags.DEFINE_string("model", None, "predict: an .onnx or .stablehlo file", **here)
    flags.DEFINE_integer("top_k", 1, "predict: number of classes for each image", **here)
    flags.DEFINE_string("output", None, "predict: file to write, .csv or .jsonl", **here)
    flags.DEFINE_string("topology", None, "compile: topology, such as v5e:4x4 or cpu:8", **here)
    flags.DEFINE_string("coordinator", None, "multi-process runs: host:port of process 0", **here)
    flags.DEFINE_integer("num_processes", None, "multi-process runs: number of processes", **here)
    flags.DEFINE_integer("process_index", None, "multi-process runs: index from 0", **here)
    return values


def main(argv: list[str]) -> int:
    """Runs the command that the arguments describe, and returns its exit code (see errors.py)."""
    interrupted = MODES["train"].when_interrupted
    try:
        if {"--help", "-help", "-h"} & set(argv):
            print(help_text())
            return 0
        values = define_flags(argv)
        if "--helpfull" in argv:
            print(values.get_help())
            return 0
        parse(values, argv)
        mode = MODES[values.mode]
        arguments = mode_arguments(values.mode, values)
        interrupted = partial(mode.when_interrupted, arguments.get("workdir"))
        leave_at_interrupt(interrupted)
        prepare_process(
            deterministic=values.config is not None and values.config.train.deterministic,
            keep_compiled=mode.keeps_programs,
        )
        join_processes(values.coordinator, values.num_processes, values.process_index)
        with (
            explaining_absent_devices(),
            exiting_on_error(),
            explaining_exhausted_memory(mode.if_exhausted),
            naming_the_config(values),
        ):
            mode.run(**arguments)
    except Stopped as stop:
        print(stop, file=sys.stderr)
    except RunError as error:
        print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        print(interrupted(), file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    show_messages()
    sys.exit(run_with_output(partial(main, sys.argv)))
