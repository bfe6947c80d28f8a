"""Parsing of main.py's command line, with one-line errors instead of absl's."""

import os
import re
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from repvgg_jax.cli.modes import MODES, RUN_WORKDIR, Mode
from repvgg_jax.config.fields import unknown_field
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.files import local_path

_HELP_ON_FLAGS = """

--mode defaults to train, and --workdir to runs/ followed by the name of the config.
configs/default.py lists all fields; override any of them: --config.train.epochs=3

  --weights FILE           PyTorch weights: input of import, output of to_torch; FILE:ENTRY
                           imports one of several models in a checkpoint
  --layout official|timm   to_torch: naming of the weights
  --fused                  to_torch: write the fused weights
  --images PATH            predict: an image, or a folder of images
  --top_k N --output FILE  predict: classes for each image; .csv or .jsonl to write
  --topology NAME          compile: target devices, such as v5e:4x4 or cpu:8
  --coordinator HOST:PORT --num_processes N --process_index I
                           multi-process runs on clusters that JAX does not detect
  --helpfull               all flags"""


def parse(values: flags.FlagValues, argv: list[str]) -> None:
    """Parses a command line into `values`, which include the flag `config`.

    Raises:
      UsageError: if the command line or the config file is invalid.
    """
    fields = [match[1] for arg in argv if (match := re.match(r"--?config\.([^=]*)", arg))]
    if repeated := [field for field in fields if fields.count(field) > 1]:
        raise UsageError(f"--config.{repeated[0]} is given twice; give it once")
    config = _given_config(argv)
    if fields and config is None:
        raise UsageError("--config.field=value overrides a config field; give --config as well")
    if config is not None:
        expanded = os.fspath(local_path(config, "--config"))
        if not Path(expanded.split(":")[0]).is_file():
            raise UsageError(f"--config={config}: file not found; bundled configs are in configs/")
        same = (config, f"--config={config}", f"-config={config}")
        argv = [arg.removesuffix(config) + expanded if arg in same else arg for arg in argv]
        config = expanded
    try:
        rest = values(argv)[1:]
    except (AttributeError, KeyError) as error:  # the config does not have an overridden field
        unchanged = _load_config(config)
        problems = filter(None, (unknown_field(unchanged, field) for field in fields))
        raise UsageError(next(problems, str(error))) from None
    except (flags.Error, UsageError) as error:
        message = str(error)
        if "Traceback" in message:  # config_flags includes the config file's traceback
            last = re.sub(r"^repvgg_jax\.errors\.\w+: ", "", message.strip().splitlines()[-1])
            message = f"--config={config}: {last}"
        raise UsageError(" ".join(message.split())) from None
    if rest:
        raise UsageError(
            f"unknown argument {rest[0]!r}; write --config FILE and --config.field=value"
        )


def _given_config(argv: list[str]) -> str | None:
    for arg, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = arg.partition("=")
        if name in ("--config", "-config"):
            return value if equals else following
    return None


def _load_config(path: str) -> Any:
    """Returns a config without overrides."""
    values = flags.FlagValues()
    argv = ["", f"--config={path}"]
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return config.value


def mode_arguments(name: str, values: flags.FlagValues) -> dict[str, Any]:
    """Returns the arguments of a mode's `run`, from the flags.

    Raises:
      UsageError: if a required flag is missing.
    """
    mode = MODES[name]
    given = {flag: values[flag].value for flag in (*mode.needs, *mode.takes)}
    if "workdir" in given:
        given["workdir"] = _workdir(mode, values)
    for flag in ("weights", "images", "output"):
        if given.get(flag) is not None:
            given[flag] = local_path(given[flag], f"--{flag}")
    if missing := [f"--{flag}" for flag in mode.needs if given[flag] is None]:
        raise UsageError(
            f"--mode={name} needs {' and '.join(missing)}; "
            f"example: python main.py --mode={name} {mode.example}"
        )
    return given


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
