"""Parsing of main.py's command line, with one-line errors instead of absl's."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from repvgg_jax.cli.config_file import check_net, find_config, load_config
from repvgg_jax.cli.modes import MODES, RUN_WORKDIR, Mode
from repvgg_jax.config.fields import FIELDS, PATHS, flat, to_json
from repvgg_jax.config.names import fields_named, nearest_fields, unknown_field
from repvgg_jax.data.sources.tfds import NotPreparedError
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.files import local_path

_HELP_ON_FLAGS = """

--mode defaults to train, and --workdir to runs/ followed by the name of the config.
configs/default.py lists all fields; override any of them: --config.train.epochs=3, or unset it:
--config.model.strides=None

  --weights FILE           PyTorch weights: output of to_torch, input of import (or FILE:ENTRY)
  --layout NAME --fused    to_torch: names (official, timm, torchvision); write the fused net
  --format LIST            export: comma-separated onnx, stablehlo, torch, safetensors, tflite
  --opset N --dynamic_size --preprocess --allow_train_form     export: see docs/guides/export.md
  --step N                 fuse, eval, export, predict: step of the checkpoint; default: the latest
  --images PATH            predict: an image, or a folder of images
  --model FILE             predict: an exported .onnx or .stablehlo file, in place of --workdir
  --top_k N --output FILE  predict: classes for each image; .csv or .jsonl to write
  --topology NAME          compile: target devices, such as v5e:4x4 or cpu:8
  --coordinator HOST:PORT --num_processes N --process_index I     clusters that JAX does not detect
  --helpfull               all flags"""


# Advice for flags that other programs have.
_UNNEEDED = {
    "resume": "the same command resumes a run",
    "device": "JAX_PLATFORMS=cpu, cuda or tpu in the environment chooses the devices",
}
_UNNEEDED["gpu"] = _UNNEEDED["gpus"] = _UNNEEDED["device"]
# Descriptions of the values of flags, by type.
_EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "bool": "True or False",
    "tuple": "numbers, or strings in quotes, in parentheses",
}


def parse(values: flags.FlagValues, argv: list[str]) -> None:
    """Parses a command line into `values`, which include the flag `config`.

    `--config.FIELD=None` unsets a field of any type.

    Raises:
      UsageError: if the command line or the config file is invalid.
    """
    fields = [match[1] for arg in argv if (match := re.match(r"--?config\.([^=]*)", arg))]
    if repeated := [field for field in fields if fields.count(field) > 1]:
        raise UsageError(f"--config.{repeated[0]} is given twice; give it once")
    given = _given_config(argv)
    if fields and given is None:
        raise UsageError("--config.field=value overrides a config field; give --config as well")
    config = None
    if given is not None:
        path = find_config(given)
        config = load_config(path)
        if problem := next(filter(None, (unknown_field(config, field) for field in fields)), None):
            raise UsageError(problem)
        same = (given, f"--config={given}", f"-config={given}")
        argv = [arg.removesuffix(given) + path if arg in same else arg for arg in argv]
    unset = [arg for arg in argv if re.fullmatch(r"--?config\.[^=]*=None", arg)]
    argv = [arg for arg in argv if arg not in unset]
    known = dict(flat(to_json(config))) if config else dict.fromkeys((*FIELDS, *PATHS))
    try:
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        given = next(arg for arg in argv if arg.lstrip("-").partition("=")[0] == error.flagname)
        raise UsageError(f"unknown flag {given}; {_hint(given, values, known)}") from None
    except flags.IllegalFlagValueError as error:
        raise UsageError(_wrong_value(str(error), values, known)) from None
    except flags.Error as error:
        missing = re.fullmatch(r"Missing value for flag (\S+)", str(error))
        message = f"{missing[1]} needs a value: {missing[1]}=VALUE" if missing else str(error)
        raise UsageError(" ".join(message.split())) from None
    for arg in unset:
        *groups, last = arg.partition(".")[2].removesuffix("=None").split(".")
        reduce(getitem, groups, values["config"].value)[last] = None
    if "model.name" in fields:
        check_net(path, config, values["config"].value, fields)
    if rest:
        raise UsageError(f"unknown argument {rest[0]!r}; {_hint(rest[0], values, known)}")


def _given_config(argv: list[str]) -> str | None:
    for arg, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = arg.partition("=")
        if name in ("--config", "-config"):
            return value if equals else following
    return None


def _hint(given: str, values: flags.FlagValues, known: Iterable[str]) -> str:
    """Returns the flags or fields that an unknown argument may stand for, or how to write them."""
    name, equals, value = given.lstrip("-").partition("=")
    if name in _UNNEEDED:
        return _UNNEEDED[name]
    if name in MODES:
        return f"did you mean --mode={name}?"
    if name.endswith(".py"):
        return f"write --config {name}"
    own = [flag for flag in values if not flag.startswith("config.")]
    near = [f"config.{field}" for field in fields_named(known, name)]
    near = near or difflib.get_close_matches(name, own, n=1, cutoff=0.7)
    near = near or [f"config.{field}" for field in nearest_fields(known, name)]
    if near:
        return f"did you mean {' or '.join(f'--{flag}{equals}{value}' for flag in near)}?"
    return "write --config FILE and --config.field=value; main.py --help lists the flags"


def _wrong_value(message: str, values: flags.FlagValues, known: Mapping[str, Any]) -> str:
    """Returns absl's message on a value of the wrong type, with the type that the flag expects."""
    match = re.fullmatch(r"flag (--([\w.]+)=.*?): (.*)", " ".join(message.split()))
    if match is None:
        return message
    given, name, problem = match.groups()
    if expected := _EXPECTED.get(values[name].parser.flag_type()):
        default = known.get(name.removeprefix("config."))
        if expected == _EXPECTED["tuple"]:
            default = default or (1, 2)
        example = "" if default is None or isinstance(default, bool) else f", such as {default}"
        problem = f"must be {expected}{example.replace('[', '(').replace(']', ')')}"
    return f"{given}: {problem}"


def mode_arguments(name: str, values: flags.FlagValues) -> dict[str, Any]:
    """Returns the arguments of a mode's `run`, from the flags.

    Raises:
      UsageError: if a required flag is missing, or one is given that only other modes have.
    """
    mode = MODES[name]
    known = {flag for each in MODES.values() for flag in (*each.needs, *each.takes)}
    for flag in sorted(known - {*mode.needs, *mode.takes, "config", "workdir"}):
        if values[flag].present:
            raise UsageError(f"--mode={name} has no option --{flag}; main.py --help lists them")
    if "config" not in (*mode.needs, *mode.takes):
        _check_config_of_run(name, values)
    given = {flag: values[flag].value for flag in (*mode.needs, *mode.takes)}
    if "workdir" in given:
        given["workdir"] = _workdir(mode, values)
    for flag in ("weights", "images", "output", "model"):
        if given.get(flag) is not None:
            given[flag] = local_path(given[flag], f"--{flag}")
    if missing := [f"--{flag}" for flag in mode.needs if given[flag] is None]:
        raise UsageError(
            f"--mode={name} needs {' and '.join(missing)}; "
            f"example: python main.py --mode={name} {mode.example}"
        )
    return given


def _check_config_of_run(name: str, values: flags.FlagValues) -> None:
    """Raises UsageError if a mode that uses the run's own config is given another one.

    --config alone is allowed: its name then determines the default workdir.
    """
    fields = [flag for flag in values if flag.startswith("config.") and values[flag].present]
    if values["config"].present and (fields or values["workdir"].present):
        flag = fields[0] if fields else "config"
        raise UsageError(f"--mode={name} uses the config of the run: leave out --{flag}")


@contextmanager
def naming_the_config(values: flags.FlagValues) -> Iterator[None]:
    """Names the config of this command in errors that show how to prepare its data."""
    try:
        yield
    except NotPreparedError as error:
        if values["config"].value is None:
            raise
        raise error.with_config(config_flags.get_config_filename(values["config"])) from None


def _workdir(mode: Mode, values: flags.FlagValues) -> Path | None:
    """Returns `--workdir`, or the mode's default, such as runs/cifar10_full for cifar10.py:full."""
    if values["workdir"].value is not None:
        return local_path(values["workdir"].value, "--workdir")
    if mode.workdir != RUN_WORKDIR:
        return Path(mode.workdir) if mode.workdir else None
    if values["config"].value is None:
        return None
    path, *variant = config_flags.get_config_filename(values["config"]).split(":")
    return Path("runs") / "_".join([Path(path).stem, *variant])


def help_text() -> str:
    """Returns main.py's help: the modes, each with an example."""
    lines = ["usage: python main.py --mode=MODE --config FILE [--config.FIELD=VALUE ...]", ""]
    for name, mode in MODES.items():
        lines += [f"  {name:<11}{mode.help}", f"  {'':<11}  --mode={name} {mode.example}"]
    return "\n".join(lines) + _HELP_ON_FLAGS
