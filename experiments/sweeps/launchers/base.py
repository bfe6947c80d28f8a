"""Options of launchers, and lazy import of launchers by name."""

import argparse
import importlib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.sweeps.flags import path_type
from repvgg_jax.errors import UsageError

_JOBS = Path("runs/jobs")
_MOUNT = Path("/runs")
LAUNCHERS = ("local", "slurm", "kubernetes")


def _flag(kind: type, default: Any, text: str, least: int | None = None) -> Any:
    """Returns a dataclass field for a flag with a help text and a minimum."""
    return field(default=default, metadata={"type": kind, "help": text, "least": least})


@dataclass(frozen=True)
class LauncherOptions:
    """Options of all launchers; each field is a flag of `experiments.run`."""

    processes: int | None = _flag(int, None, "local, slurm: number of runs at a time", least=1)
    folder: Path = _flag(path_type, _JOBS, "folder of logs (slurm) or manifests (kubernetes)")  # noqa: RUF009
    grace: int = _flag(int, 120, "slurm, kubernetes: seconds from stop signal to kill", least=0)
    restarts: int = _flag(int, 20, "slurm: requeues at time limit; kubernetes: restarts", least=0)
    cluster: str = _flag(str, "slurm", "slurm: `local` runs the same jobs on this machine")
    partition: str | None = _flag(str, None, "slurm: partition; the cluster's default if unset")
    account: str | None = _flag(str, None, "slurm: account to charge; the user's default if unset")
    minutes: int = _flag(int, 240, "slurm: time limit, after which a run is requeued", least=1)
    cpus: int = _flag(int, 8, "slurm: CPU cores of a run", least=1)
    gpus: int = _flag(int, 1, "slurm: GPUs of a run, all on one node", least=0)
    slice: str | None = _flag(str, None, "kubernetes, required: TPU slice, such as v5e:4x4")
    image: str | None = _flag(str, None, "kubernetes, required: image with this repository")
    queue: str | None = _flag(str, None, "kubernetes, required: local queue of Kueue")
    namespace: str = _flag(str, "default", "kubernetes: namespace of the queue and the jobs")
    volume: str | None = _flag(str, None, "kubernetes, required: gs://BUCKET[/FOLDER] or a claim")
    mount: Path = _flag(Path, _MOUNT, "kubernetes: path of the volume in a pod")  # noqa: RUF009
    service_account: str | None = _flag(str, None, "kubernetes: account with bucket access")

    def __post_init__(self) -> None:
        """Raises UsageError for numbers out of range, listing all."""
        wrong = []
        for each in fields(self):
            value, least = getattr(self, each.name), each.metadata["least"]
            if least is not None and value is not None and value < least:
                wrong.append(f"--{each.name}={value}: must be {least} or more")
        if wrong:
            raise UsageError("; ".join(wrong))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the fields of `LauncherOptions` to a parser; flags that are not given stay unset."""
    group = parser.add_argument_group("launcher flags")
    for each in fields(LauncherOptions):
        text = each.metadata["help"]
        if each.default is not None:
            text += f" (default: {each.default})"
        kind = each.metadata["type"]
        group.add_argument(f"--{each.name}", type=kind, default=argparse.SUPPRESS, help=text)


def check_folders(*folders: Path) -> None:
    """Raises UsageError for a folder that this process can neither write nor create."""
    for folder in folders:
        parents = (folder.absolute(), *folder.absolute().parents)
        existing = next(path for path in parents if os.path.exists(path))
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UsageError(f"{folder}: {existing} is not a writable directory")


def launcher(name: str) -> ModuleType:
    """Returns the module of one of `LAUNCHERS`.

    `module.FLAGS` names the options that it reads. `module.check(jobs, options)` raises UsageError,
    before anything starts, for whatever `module.launch(jobs, options)` would reject.
    """
    return importlib.import_module(f"experiments.sweeps.launchers.{name}")
