"""From a sweep's name to its runs: every one a full config, checked before any of them starts."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import cifar10_short
from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.jobs import LONGEST_NAME
from repvgg_jax.config.build import check_groups, make_net, make_optimizer, make_transform
from repvgg_jax.config.fields import config_hash, unknown_field, value_problems
from repvgg_jax.config.workdir import read_config
from repvgg_jax.errors import UsageError

PROTOCOLS: dict[str, Callable[[], ConfigDict]] = {
    "cifar10_short": cifar10_short.get_config,
    "cifar10_full": lambda: cifar10_short.get_config("full"),
}
SEEDS = (0, 1, 2)
# Fields that change how long a run is, and none of its steps.
LENGTH = {"train.epochs", "train.steps", "optim.warmup_epochs"}


@dataclass(frozen=True)
class Run:
    """One training run of a sweep.

    Attributes:
      sweep, name: which variant of which sweep.
      seed: `config.seed`.
      protocol: of `PROTOCOLS`, the config that the overrides change.
      overrides: the variant's fields, and over them those that all runs of a command share.
    """

    sweep: str
    name: str
    seed: int
    protocol: str
    overrides: dict[str, Any]

    def config(self) -> ConfigDict:
        """The full config.

        Raises:
          UsageError: for a field that doesn't exist, or a value of another type.
        """
        config = PROTOCOLS[self.protocol]()
        for name, value in {**self.overrides, "seed": self.seed}.items():
            set_field(config, name, value)
        return config.lock()

    @cached_property
    def config_hash(self) -> str:
        """The run's identity: two runs that compute the same have the same."""
        return config_hash(self.config())

    @property
    def job_name(self) -> str:
        """For schedulers: small letters, digits and hyphens; unique, and cut to what all take."""
        end = f"-s{self.seed}-{self.config_hash}"
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.sweep}-{self.name}".lower())
        return words[: LONGEST_NAME - len(end)].rstrip("-") + end

    def workdir(self, root: Path) -> Path:
        """Where it trains. Sweeps share their common runs."""
        return Path(root) / self.config_hash


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Sets `optim.momentum` or the like.

    Raises:
      UsageError: for a field that doesn't exist, or a value of another type.
    """
    if problem := unknown_field(config, [name]):
        raise UsageError(problem)
    *groups, last = name.split(".")
    for group in groups:
        config = config[group]
    try:
        config[last] = value
    except TypeError:
        known = config.get_type(last).__name__
        raise UsageError(f"--config.{name}={value!r}: must be of type {known}") from None


def known(row: Mapping[str, Any]) -> bool:
    """Whether this code has the row's sweep and variant."""
    return row["sweep"] in SWEEPS and row["name"] in SWEEPS[row["sweep"]].variants


def strange_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in which a row's overrides differ from its variant's, with the row's values.

    None where the row has none, as of a field that the variant has got since. Of a `known` row.
    """
    own = SWEEPS[row["sweep"]].own(row["name"])
    given = row.get("overrides") or {}
    return {
        name: given.get(name)
        for name in {**own, **given}
        if name not in own or own[name] != given.get(name)
    }


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """`--config.train.epochs=3` -> `{"train.epochs": 3}`, by the type of the field.

    Raises:
      UsageError: listing all that isn't of this form, or given twice. Unknown fields are
        `expand`'s.
    """
    fields: dict[str, Any] = {}
    errors, default = [], cifar10_short.get_config()
    for argument in arguments:
        if not (match := re.fullmatch(r"--config\.([\w.]+)=(.*)", argument, re.DOTALL)):
            errors.append(f"{argument!r} is no flag; fields are given as --config.field=value")
            continue
        name, text = match.groups()
        if name in fields:
            errors.append(f"--config.{name} is given twice; give it once")
        fields[name] = text if _is_text(default, name) else _literal(text)
    if errors:
        raise UsageError(listed(errors))
    return fields


def _is_text(config: ConfigDict, name: str) -> bool:
    *groups, last = name.split(".")
    if unknown_field(config, [name]):
        return False
    for group in groups:
        config = config[group]
    return config.get_type(last) is str


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
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
    """The runs of a sweep, seed by seed, so that all variants have one before any has two.

    Args:
      name: of `SWEEPS`.
      protocol: of `PROTOCOLS`.
      seeds: one run each of every variant.
      overrides: fields for all runs, over the variants' own.
      only: these variants; all by default.

    Raises:
      UsageError: listing all that is wrong: unknown words, fields and values that cannot be built.
    """
    shared, errors = dict(overrides or {}), _unknown(name, protocol, seeds, only)
    if "seed" in shared:
        errors.append("--config.seed is a run's own; give --seeds")
    if name not in SWEEPS or protocol not in PROTOCOLS or not seeds:
        raise UsageError(listed(errors))
    variants = SWEEPS[name].variants
    chosen = [variant for variant in variants if variant in only] or list(variants)
    runs = [
        Run(name, variant, seed, protocol, {**variants[variant], **shared})
        for seed in seeds
        for variant in chosen
    ]
    problems: dict[str, list[str]] = {}
    for run in runs[: len(chosen)]:  # seeds differ in nothing that can be wrong
        for problem in _problems(run):
            problems.setdefault(problem, []).append(run.name)
    problems |= {} if problems else _same(runs[: len(chosen)])
    if errors or problems:
        raise UsageError(listed([*errors, *of_variants(name, problems)]))
    return runs


def _unknown(name: str, protocol: str, seeds: Sequence[int], only: Sequence[str]) -> list[str]:
    errors = []
    if name not in SWEEPS:
        errors.append(f"unknown sweep {name!r}; known are {', '.join(SWEEPS)}")
    if protocol not in PROTOCOLS:
        errors.append(f"unknown protocol {protocol!r}; known are {', '.join(PROTOCOLS)}")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        errors.append(f"seeds {','.join(map(str, seeds))}: different numbers from 0 on")
    known = SWEEPS[name].variants if name in SWEEPS else only
    if missing := [variant for variant in only if variant not in known]:
        errors.append(f"{name} has no {', '.join(missing)}; it has {', '.join(known)}")
    if len(set(only)) < len(only):
        errors.append(f"--only={','.join(only)}: each variant once")
    return errors


def _problems(run: Run) -> list[str]:
    """All that is wrong with a run's config."""
    config, problems = PROTOCOLS[run.protocol](), []
    for name, value in run.overrides.items():
        try:
            set_field(config, name, value)
        except UsageError as error:
            problems.append(str(error))
    if problems:  # which values fit together can only be said of fields that are there
        return problems
    if problems := list(value_problems(config)):  # and other checks compute with numbers in range
        return problems
    for check in (make_net, check_groups, make_transform, _check_optimizer, _check_sources):
        try:
            check(config)
        except (UsageError, TypeError, ValueError) as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _check_optimizer(config: ConfigDict) -> None:
    make_optimizer(config, lambda step: 0.0)


def _check_sources(config: ConfigDict) -> None:
    """Raises UsageError where the runs whose weights it starts from are not there."""
    for workdir in (config.init_from, config.optim.repoptimizer_from):
        if workdir is not None:
            read_config(Path(workdir))


def _same(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Variants that an override makes one and the same run."""
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(run.config_hash, []).append(run.name)
    twice = (names for names in found.values() if len(names) > 1)
    words = "are one and the same run; leave out the override that makes them so"
    return {f"{' and '.join(names)} {words}": names for names in twice}


def of_variants(sweep: str, problems: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each problem, with the variants that have it."""
    return [f"{sweep}/{','.join(names)}: {text}" for text, names in problems.items()]


def listed(errors: Iterable[str]) -> str:
    """One mistake, or all of them a line each."""
    errors = list(errors)
    return errors[0] if len(errors) == 1 else "\n  ".join([f"{len(errors)} mistakes:", *errors])
