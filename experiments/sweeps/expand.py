"""Expands a sweep into its runs, whose full configs are checked before anything starts."""

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import cifar10_a0, cifar10_b0, cifar10_short
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.jobs import LONGEST_NAME
from repvgg_jax.config.build import check_groups, make_net, make_transform
from repvgg_jax.config.fields import config_hash, value_problems
from repvgg_jax.config.names import unknown_field
from repvgg_jax.config.optimizer import make_optimizer
from repvgg_jax.config.workdir import read_config
from repvgg_jax.errors import UsageError, check_known, nearest

PROTOCOLS: dict[str, Callable[[], ConfigDict]] = {
    "cifar10_short": cifar10_short.get_config,
    "cifar10_full": lambda: cifar10_short.get_config("full"),
    "cifar10_b0": cifar10_b0.get_config,
    "cifar10_b0_short": lambda: cifar10_b0.get_config("short"),
    "cifar10_a0": cifar10_a0.get_config,
    "cifar10_a0_short": lambda: cifar10_a0.get_config("short"),
}
SEEDS = (0, 1, 2)
# Fields that change the length of a run but not what its steps compute.
LENGTH = {"train.epochs", "train.steps", "optim.warmup_epochs"}


@dataclass(frozen=True)
class Run:
    """One training run of a sweep."""

    sweep: str
    name: str  # name of the variant
    seed: int
    protocol: str  # key of `PROTOCOLS`, the config that the overrides change
    overrides: dict[str, Any]  # the variant's fields, overridden by those of the command line

    def config(self) -> ConfigDict:
        """Returns the full config; raises UsageError like `set_field`."""
        config = PROTOCOLS[self.protocol]()
        for name, value in {**self.overrides, "seed": self.seed}.items():
            set_field(config, name, value)
        return config.lock()

    @cached_property
    def config_hash(self) -> str:
        """The run's identity: runs with the same computation have the same hash."""
        return config_hash(self.config())

    @property
    def job_name(self) -> str:
        """A unique name for schedulers, of lowercase letters, digits and hyphens."""
        end = f"-s{self.seed}-{self.config_hash}"
        start = re.sub(r"[^a-z0-9]+", "-", f"{self.sweep}-{self.name}".lower())
        return start[: LONGEST_NAME - len(end)].rstrip("-") + end

    def workdir(self, root: Path) -> Path:
        """Returns the run's workdir, which is the same in all sweeps that include the run."""
        return Path(root) / self.config_hash


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Sets a field such as `optim.momentum`; raises UsageError if it is unknown or mistyped."""
    if problem := unknown_field(config, name):
        raise UsageError(problem)
    *groups, last = name.split(".")
    for group in groups:
        config = config[group]
    try:
        config[last] = value
    except TypeError:
        expected = config.get_type(last).__name__
        raise UsageError(f"--config.{name}={value!r}: must be of type {expected}") from None


def is_current_variant(row: Mapping[str, Any]) -> bool:
    """Returns True if this code has the row's sweep and variant."""
    return row["sweep"] in SWEEPS and row["name"] in SWEEPS[row["sweep"]].variants


def extra_overrides(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the overrides that differ from those of the row's current variant.

    The values are the row's; fields that only the variant has are None.
    """
    own = SWEEPS[row["sweep"]].row_overrides(row["name"])
    given = row.get("overrides") or {}
    return {
        name: given.get(name)
        for name in {**own, **given}
        if name not in own or own[name] != given.get(name)
    }


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Parses overrides by the types of fields: `--config.train.epochs=3` -> `train.epochs: 3`.

    Raises UsageError that lists all arguments of another form and repeated fields.
    """
    fields: dict[str, Any] = {}
    errors = []
    default = cifar10_short.get_config()
    for argument in arguments:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", argument, re.DOTALL)
        if not match:
            errors.append(f"unknown argument {argument!r}; a field is --config.FIELD=VALUE")
            continue
        name, text = match.groups()
        if name in fields:
            errors.append(f"--config.{name} is given twice; give it once")
        as_text = _is_string(default, name) and text != "None"  # which unsets the field
        fields[name] = text if as_text else _literal(text)
    if errors:
        raise UsageError(join_errors(errors))
    return fields


def _is_string(config: ConfigDict, name: str) -> bool:
    *groups, last = name.split(".")
    if unknown_field(config, name):
        return False
    for group in groups:
        config = config[group]
    return config.get_type(last) is str


def _literal(text: str) -> Any:
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def expand(
    name: str,
    protocol: str = "cifar10_short",
    seeds: Sequence[int] = SEEDS,
    overrides: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
) -> list[Run]:
    """Returns the runs of a sweep, seed by seed, so that variants can be compared early.

    Args:
      name: key of `SWEEPS`.
      protocol: key of `PROTOCOLS`.
      seeds: seeds of each variant.
      overrides: fields of all runs, which take precedence over the variants' own.
      only: names of variants; all by default.

    Raises:
      UsageError: for unknown names and fields and invalid values, listing all.
    """
    shared = dict(overrides or {})
    errors = _unknown(name, protocol, seeds, only)
    if "seed" in shared:
        errors.append("--config.seed: use --seeds instead")
    if name not in SWEEPS or protocol not in PROTOCOLS or not seeds:
        raise UsageError(join_errors(errors))
    variants = SWEEPS[name].variants
    chosen = [variant for variant in variants if variant in only] or list(variants)
    runs = [
        Run(name, variant, seed, protocol, {**variants[variant], **shared})
        for seed in seeds
        for variant in chosen
    ]
    first_seed = runs[: len(chosen)]  # the seed does not affect the checks
    problems: dict[str, list[str]] = {}
    for run in first_seed:
        for problem in _problems(run):
            problems.setdefault(problem, []).append(run.name)
    problems = problems or _duplicates(first_seed)
    if errors or problems:
        raise UsageError(join_errors([*errors, *variant_errors(name, problems)]))
    return runs


def _unknown(name: str, protocol: str, seeds: Sequence[int], only: Sequence[str]) -> list[str]:
    errors = []
    for kind, given, known in (("sweep", name, SWEEPS), ("protocol", protocol, PROTOCOLS)):
        try:
            check_known(kind, given, known)
        except UsageError as error:
            errors.append(str(error))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        errors.append(f"seeds {','.join(map(str, seeds))}: must be distinct and at least 0")
    variants = SWEEPS[name].variants if name in SWEEPS else only
    if missing := [variant for variant in only if variant not in variants]:
        close = [found for each in missing for found in nearest(each, variants)]
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(variants)}"
        errors.append(f"{name} has no variant {', '.join(missing)}; {hint}")
    if len(set(only)) < len(only):
        errors.append(f"--only={','.join(only)}: give each variant once")
    return errors


def _problems(run: Run) -> list[str]:
    """Returns all problems of a run's config."""
    config = PROTOCOLS[run.protocol]()
    problems = []
    for name, value in run.overrides.items():
        try:
            set_field(config, name, value)
        except UsageError as error:
            problems.append(str(error))
    if problems:  # the checks below need all fields
        return problems
    if problems := list(value_problems(config)):  # and these need values in range
        return problems
    for check in (make_net, check_groups, make_transform, _check_optimizer, _check_sources):
        try:
            check(config)
        except (UsageError, TypeError, ValueError) as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _check_optimizer(config: ConfigDict) -> None:
    make_optimizer(config, make_net(config), lambda step: 0.0)


def _check_sources(config: ConfigDict) -> None:
    """Raises UsageError if the run that provides the initial weights does not exist."""
    for workdir in (config.init_from, config.optim.repoptimizer_from):
        if workdir is not None:
            read_config(workdir)


def _duplicates(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns a problem for each group of variants that an override makes identical."""
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(run.config_hash, []).append(run.name)
    return {
        f"{' and '.join(names)} are identical; remove the override that makes them so": names
        for names in found.values()
        if len(names) > 1
    }


def variant_errors(sweep: str, problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a line for each problem, with the variants that have it."""
    return [f"{sweep}/{','.join(names)}: {text}" for text, names in problems.items()]


def join_errors(errors: Sequence[str]) -> str:
    """Returns a single error unchanged, or several as a list headed by their number."""
    if len(errors) == 1:
        return errors[0]
    return "\n  ".join([f"{len(errors)} errors:", *errors])


def count(number: int, noun: str) -> str:
    """Formats `1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
