"""The launcher `kubernetes`: a JobSet for each run, which Kueue admits to a TPU slice on GKE.

Nothing is applied: the manifests are written, for `kubectl apply -f`. A run that is preempted is
told by SIGTERM, saves, and goes on in the JobSet's next attempt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.launchers import Job, LauncherOptions
from repvgg_jax.errors import UsageError

# Accelerator -> its label on GKE's nodes, axes of its topologies, chips of a host in a slice.
_ACCELERATORS = {
    "v4": ("tpu-v4-podslice", 3, 4),
    "v5e": ("tpu-v5-lite-podslice", 2, 4),
    "v5p": ("tpu-v5p-slice", 3, 4),
    "v6e": ("tpu-v6e-slice", 2, 4),
}
_RESTARTS = 20
_GRACE_SECONDS = 120  # from SIGTERM to the end: a checkpoint's time


def launch(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Writes `<manifests>/<name>.yaml` for each job, and says how to apply them.

    Raises:
      UsageError: for an option that is missing or makes no slice, or a workdir off the volume.
    """
    import yaml

    manifests = {job.name: job_set(job, options) for job in jobs}
    options.manifests.mkdir(parents=True, exist_ok=True)
    for name, manifest in manifests.items():
        text = yaml.safe_dump(manifest, sort_keys=False, width=100)
        (options.manifests / f"{name}.yaml").write_text(text, encoding="utf-8")
    files = " ".join(f"-f {options.manifests / name}.yaml" for name in manifests)
    print(f"{len(jobs)} manifests; kubectl apply {files}")


def slice_of(text: str) -> tuple[str, str, int, int]:
    """`v5e:4x4` -> node label, topology, hosts, chips of a host.

    Raises:
      UsageError: for what is no slice.
    """
    accelerator, _, topology = text.partition(":")
    if accelerator not in _ACCELERATORS:
        known = ", ".join(_ACCELERATORS)
        raise UsageError(f"--slice={text}: ACCELERATOR:TOPOLOGY, the accelerator one of {known}")
    label, axes, of_host = _ACCELERATORS[accelerator]
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (axes - 1), topology):
        example = "x".join("4" * axes)
        raise UsageError(f"--slice={text}: a topology of {axes} axes, such as {example}")
    chips = math.prod(map(int, topology.split("x")))
    if chips > of_host and chips % of_host:
        raise UsageError(f"--slice={text}: {chips} chips are no whole hosts of {of_host}")
    return label, topology, max(1, chips // of_host), min(chips, of_host)


def job_set(job: Job, options: LauncherOptions) -> dict[str, Any]:
    """The manifest of one run: a process on each host of a slice.

    Raises:
      UsageError: as `launch`.
    """
    required = {"--image": options.image, "--queue": options.queue, "--volume": options.volume}
    if missing := [flag for flag, value in required.items() if value is None]:
        raise UsageError(f"--launcher=kubernetes needs {', '.join(missing)}")
    label, topology, hosts, chips = slice_of(options.slice)
    # Pods are called <name>-run-0-<host>-<five letters>, which must be a label of DNS.
    longest = 63 - len(f"-run-0-{hosts - 1}-abcde")
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", job.name) or len(job.name) > longest:
        raise UsageError(
            f"{job.name}: no name for a JobSet, which has small letters, digits and hyphens, "
            f"{longest} at most"
        )
    _check_workdir(job, options.mount)
    container = {
        "name": "run",
        "image": options.image,
        "command": list(job.command),
        "resources": {"limits": {"google.com/tpu": chips}},
        "volumeMounts": [{"name": "runs", "mountPath": str(options.mount)}],
    }
    pod = {
        "restartPolicy": "Never",  # the JobSet restarts all hosts together
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": label,
            "cloud.google.com/gke-tpu-topology": topology,
        },
        "containers": [container],
        "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": options.volume}}],
    }
    spec = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": options.namespace,
            "labels": {"kueue.x-k8s.io/queue-name": options.queue},
        },
        "spec": {
            "suspend": True,  # until Kueue admits it
            "failurePolicy": {"maxRestarts": _RESTARTS},
            "replicatedJobs": [{"name": "run", "replicas": 1, "template": {"spec": spec}}],
        },
    }


def _check_workdir(job: Job, mount: Path) -> None:
    """Raises UsageError where the run would write to where it is lost with its pod."""
    for flag in ("--workdir=", "--results="):
        for word in job.command:
            if word.startswith(flag) and mount not in Path(word.removeprefix(flag)).parents:
                raise UsageError(
                    f"{word}: not on the volume, which is mounted at {mount}; give "
                    f"--workdirs={mount}/sweeps --results={mount}/results"
                )
