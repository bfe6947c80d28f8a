"""Finding and loading of config files, with one-line errors for what is wrong in them."""

import difflib
import importlib.machinery
import inspect
import os
import re
import traceback
import types
from collections.abc import Collection, Iterable
from pathlib import Path

from ml_collections import ConfigDict

from repvgg_jax.config.fields import FIELDS, REQUIRED, flat, to_json
from repvgg_jax.errors import UsageError, shortened
from repvgg_jax.nets import NETS, create
from repvgg_jax.runtime.files import local_path

BUNDLED = Path(__file__).parents[2] / "configs"  # of a clone; a wheel has none
_STAGES = ("depths", "widths", "strides")


def find_config(given: str) -> str:
    """Returns `--config`, as `file.py` or `file.py:variant`, with `~` expanded.

    Raises:
      UsageError: if there is no such file; the message names the nearest bundled config.
    """
    path = os.fspath(local_path(given, "--config"))
    file, colon, variant = path.partition(":")
    if Path(file).is_file():
        if Path(file).suffix != ".py":
            raise UsageError(
                f"--config={given}: a config is a Python file, such as configs/quickstart.py"
            )
        return path
    bundled = {found.stem: os.path.relpath(found) for found in sorted(BUNDLED.glob("[!_]*.py"))}
    close = difflib.get_close_matches(Path(file).stem, bundled, n=1)
    hint = "bundled configs are in configs/"
    if close:
        hint = f"did you mean --config={bundled[close[0]]}{colon}{variant}?"
    raise UsageError(f"--config={given}: file not found; {hint}")


def load_config(path: str) -> ConfigDict:
    """Returns the config of `file.py` or `file.py:variant`, without overrides.

    Raises:
      UsageError: if the file cannot be executed, or does not return a complete config.
    """
    file, *variant = path.split(":", 1)
    try:
        loader = importlib.machinery.SourceFileLoader("config_file", file)
        module = types.ModuleType(loader.name)
        loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UsageError("it has no function get_config; see configs/quickstart.py")
        if variant and not inspect.signature(module.get_config).parameters:
            raise UsageError(f"this config has no variants; give --config={file}")
        config = module.get_config(*variant)
    except UsageError as error:
        raise UsageError(f"--config={path}: {error}") from error
    except Exception as error:
        raise UsageError(f"--config={path}: {_cause(error, file)}") from error
    if not isinstance(config, ConfigDict):
        raise UsageError(
            f"--config={path}: get_config returns {type(config).__name__}; it must return the "
            "ConfigDict of configs.default.get_config(), with changes"
        )
    fields = dict(flat(to_json(config)))
    if missing := [name for name in FIELDS if name not in fields]:
        raise UsageError(
            f"--config={path}: has no {shortened(missing, 3)}; start from "
            "configs.default.get_config(), which has all fields"
        )
    return config


def check_net(path: str, loaded: ConfigDict, config: ConfigDict, given: Collection[str]) -> None:
    """Raises UsageError if a config file sets fields that do not suit the net of an override.

    Args:
      path: the config, as `file.py` or `file.py:variant`.
      loaded: its fields, without overrides.
      config: its fields with all overrides.
      given: names of the fields that are overridden.
    """
    fields = [f"model.{field}" for field in _unsuitable(loaded, config, given)]
    if not fields:
        return
    nets = BUNDLED / f"{config.data.name}_nets.py"
    remedy = f"unset them: {' '.join(f'--config.{field}=None' for field in fields)}"
    if nets.exists():
        remedy = f"use --config {os.path.relpath(nets)}:{config.model.name}"
    raise UsageError(
        f"--config.model.name={config.model.name}: {path} sets {', '.join(fields)} for another "
        f"net; {remedy}"
    )


def _unsuitable(loaded: ConfigDict, config: ConfigDict, given: Collection[str]) -> list[str]:
    """Returns the fields of `model` that a config file sets, and that do not suit another net."""

    def builds(unset: Iterable[str]) -> bool:
        try:
            create(**(config.model.to_dict() | dict.fromkeys(unset)))
        except UsageError:
            return False
        return True

    of_file = [
        field
        for field, value in loaded.model.items()
        if value is not None and f"model.{field}" not in (*REQUIRED, *given)
    ]
    if not builds(of_file):
        return []
    if not builds([]):
        return [each for each in of_file if not builds(set(of_file) - {each})] or of_file
    if loaded.model.name not in NETS:  # unset, as in configs/folder.py, or unknown
        return []
    family, other = (type(create(each.model.name)) for each in (loaded, config))
    # Stages of another family may fit, but would make another net than the named one.
    return [] if family is other else [field for field in of_file if field in _STAGES]


def _cause(error: Exception, file: str) -> str:
    """Returns an exception as one line, with the line of the config file that it comes from."""
    if isinstance(error, SyntaxError):
        imported = "" if error.filename == file else f"{error.filename}, "
        return f"{imported}line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    line = f"line {lines[-1]}: " if lines else ""
    cause = error.args[0] if error.args else ""
    if isinstance(cause, KeyError):  # how ml_collections names an unknown field, and the nearest
        cause = cause.args[0]
        if unknown := re.match(r"""(?:Key ["']|')(\w+)""", cause):
            close = re.search(r'Did you mean "(\w+)', cause)
            hint = f"did you mean {close[1]}?" if close else "configs/default.py lists them"
            return f"{line}there is no field {unknown[1]} here; {hint}"
    return f"{line}{type(error).__name__}: {' '.join(str(error).split())}"
