"""What runs jobs: `LAUNCHERS[name](jobs, options)`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One run: a unique name, its argv, and how many seconds it should take, where that is known.

    The name is of small letters, digits and hyphens. The command exits with 0 where the run is
    finished and with 75 where it was told to stop; then the same command goes on.
    """

    name: str
    command: tuple[str, ...]
    seconds: float | None


@dataclass(frozen=True)
class LauncherOptions:
    """What a launcher may be told; each field is a flag of `experiments.run`.

    Attributes:
      processes: runs at a time; one a device (local), as many as the scheduler lets (slurm).
      partition: slurm's.
      minutes: slurm: of one job, which is queued again while its run isn't finished.
      cpus, gpus: slurm: of one job.
      logs: slurm: folder for what submitit writes, on a file system that all nodes see.
      cluster: slurm, or local to have submitit run the jobs on this machine.
      slice: kubernetes: accelerator and topology, as --mode=compile has them: v5e:4x4.
      image: kubernetes: the container, with this project as its working directory.
      queue, namespace: kubernetes: Kueue's local queue, and where that is.
      volume, mount: kubernetes: claim of a volume, and where it is mounted; workdirs lie there.
      manifests: kubernetes: folder that the manifests are written to.
    """

    processes: int | None = None
    partition: str | None = None
    minutes: int = 240
    cpus: int = 8
    gpus: int = 1
    logs: Path = Path("runs/slurm")
    cluster: str = "slurm"
    slice: str = "v5e:2x2"
    image: str | None = None
    queue: str | None = None
    namespace: str = "default"
    volume: str | None = None
    mount: Path = Path("/runs")
    manifests: Path = Path("runs/jobsets")


def _launch(name: str, jobs: Sequence[Job], options: LauncherOptions) -> None:
    importlib.import_module(f"experiments.launchers.{name}").launch(jobs, options)


LAUNCHERS: dict[str, Callable[[Sequence[Job], LauncherOptions], None]] = {
    name: partial(_launch, name) for name in ("local", "slurm", "kubernetes")
}
