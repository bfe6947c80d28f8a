"""The launcher `kubernetes`: a JobSet for each run on a TPU slice of GKE, queued by Kueue.

It writes manifests and sends none. `kubectl create -f` does, and leaves alone what is there;
`kubectl apply` would suspend what runs.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments.sweeps.jobs import STOPPED, Job
from experiments.sweeps.launchers import LauncherOptions, check_folders
from repvgg_jax.errors import UsageError

FLAGS = {"folder", "grace", "restarts", "slice", "image", "queue", "namespace", "volume", "mount"}
FLAGS |= {"service_account"}
_ROLE = "run"  # of the one replicated job, and of the container
_MISTAKE = UsageError.exit_code  # which starting again would only repeat
_LABEL = r"[a-z]([-a-z0-9]*[a-z0-9])?"  # RFC 1035: a name in DNS
_LONGEST = 63
# Generation -> GKE's name of it, and how many axes its torus has (Google Cloud, "Plan TPUs in
# GKE"). Slices of one host have all its chips; in larger ones a host has four.
_ACCELERATORS = {
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
}
_CHIPS_A_HOST = 4
_PLANES = ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"]
_SMALL_CUBES = ["2x2x1", "2x2x2", "2x2x4", "2x4x4"]


class Slice(NamedTuple):
    """A TPU slice as GKE sees it."""

    accelerator: str
    topology: str
    hosts: int
    chips: int  # of one host


def parse_slice(text: str) -> Slice:
    """`v5e:4x4` -> 4 hosts of 4 chips.

    Raises:
      UsageError: for a slice that GKE doesn't have.
    """
    name, _, topology = text.partition(":")
    if name not in _ACCELERATORS:
        raise UsageError(f"--slice={text}: give {', '.join(_ACCELERATORS)} and a size: v5e:4x4")
    accelerator, axes = _ACCELERATORS[name]
    if axes == 2 and topology not in _PLANES:
        raise UsageError(f"--slice={text}: {name} has {', '.join(_PLANES)}")
    if axes == 3 and topology not in _SMALL_CUBES and not _is_large_cube(topology):
        raise UsageError(
            f"--slice={text}: {name} has {', '.join(_SMALL_CUBES)}, and three multiples of 4 in "
            "ascending order, such as 4x4x8"
        )
    chips = math.prod(int(size) for size in topology.split("x"))
    if topology == "2x4" or chips < _CHIPS_A_HOST:
        return Slice(accelerator, topology, 1, chips)
    return Slice(accelerator, topology, chips // _CHIPS_A_HOST, _CHIPS_A_HOST)


def _is_large_cube(topology: str) -> bool:
    if not re.fullmatch(r"[1-9]\d?x[1-9]\d?x[1-9]\d?", topology):
        return False
    sizes = [int(size) for size in topology.split("x")]
    return sizes == sorted(sizes) and all(size % 4 == 0 for size in sizes)


def manifest(job: Job, options: LauncherOptions) -> dict[str, Any]:
    """The JobSet of one run: a pod on each host of the slice, all of them restarted together.

    Kueue lifts `suspend` when the whole slice is free. A pod that was told to stop exits with
    `STOPPED`; that, and an eviction, restarts the run without counting as one of its restarts. A
    mistake of the user's fails the JobSet at once.

    Raises:
      UsageError: for what the cluster would refuse, listing all of it.
    """
    tpu = _checked(job, options)
    metadata: dict[str, Any] = {
        "name": job.name,
        "namespace": options.namespace,
        "labels": {"kueue.x-k8s.io/queue-name": options.queue},
    }
    if tpu.hosts > 1:  # all pods on the hosts of one slice, and no other's among them
        exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {exclusive: "cloud.google.com/gke-nodepool"}
    # Both make a Job fail for one reason; Kubernetes' message has the exit code. The first counts.
    mistake = {
        "action": "FailJobSet",
        "name": "mistake",
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": [f"failed with exit code {_MISTAKE} matching"],
    }
    disruption = {
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "name": "disruption",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "suspend": True,
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": options.restarts, "rules": [mistake, disruption]},
            "replicatedJobs": [
                {"name": _ROLE, "replicas": 1, "template": {"spec": _job(job, tpu, options)}}
            ],
        },
    }


def _job(job: Job, tpu: Slice, options: LauncherOptions) -> dict[str, Any]:
    """The spec of the batch/v1 Job."""
    known = {"containerName": _ROLE, "operator": "In", "values": [_MISTAKE, STOPPED]}
    evicted = {"type": "DisruptionTarget", "status": "True"}
    return {
        "completionMode": "Indexed",
        "completions": tpu.hosts,
        "parallelism": tpu.hosts,
        "backoffLimit": 0,  # the hosts of a run cannot go on without one of them
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": known},
                {"action": "FailJob", "onPodConditions": [evicted]},
            ]
        },
        "template": _pod(job, tpu, options),
    }


def _pod(job: Job, tpu: Slice, options: LauncherOptions) -> dict[str, Any]:
    chips = {"google.com/tpu": tpu.chips}
    container = {
        "name": _ROLE,
        "image": options.image,
        "command": list(job.command),
        # No run on the host's own processor where the chips cannot be had.
        "env": [{"name": "JAX_PLATFORMS", "value": "tpu,cpu"}],
        "resources": {"requests": chips, "limits": dict(chips)},
        "volumeMounts": [{"name": "runs", "mountPath": str(options.mount)}],
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": tpu.accelerator,
            "cloud.google.com/gke-tpu-topology": tpu.topology,
        },
        "containers": [container],
        "volumes": [{"name": "runs", **_volume(options.volume)}],
    }
    if options.service_account is not None:
        spec["serviceAccountName"] = options.service_account
    if options.volume.startswith("gs://"):
        return {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": spec}
    return {"spec": spec}


def _volume(text: str) -> dict[str, Any]:
    """The source of a volume: a bucket, or a claim."""
    if not text.startswith("gs://"):
        return {"persistentVolumeClaim": {"claimName": text}}
    bucket, _, folder = text.removeprefix("gs://").strip("/").partition("/")
    # A checkpoint is renamed when it is whole, which gcsfuse refuses to do to folders by default.
    mount_options = "implicit-dirs,rename-dir-limit=200000" + f",only-dir={folder}" * bool(folder)
    attributes = {"bucketName": bucket, "mountOptions": mount_options}
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}


def _checked(job: Job, options: LauncherOptions) -> Slice:
    """The slice; raises UsageError, listing all that is wrong with the options and the job."""
    needed = ("slice", "image", "queue", "volume")
    problems, tpu = [], None
    if missing := [f"--{name}" for name in needed if not getattr(options, name)]:
        problems.append(f"--launcher=kubernetes needs {', '.join(missing)} too")
    if options.slice:
        try:
            tpu = parse_slice(options.slice)
        except UsageError as error:
            problems.append(str(error))
    problems += _wrong_options(options)
    problems += _wrong_job(job, tpu.hosts if tpu else 1, options.mount)
    if problems or tpu is None:
        raise UsageError("; ".join(problems))
    return tpu


def _wrong_options(options: LauncherOptions) -> Iterator[str]:
    # RFC 1123
    label, subdomain = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
    volume = rf"gs://[a-z0-9][-_.a-z0-9]+(/[^,]*)?|{subdomain}"
    if options.volume and not re.fullmatch(volume, options.volume):
        yield (
            f"--volume={options.volume}: gs://BUCKET[/FOLDER], or the name of a claim in "
            f"the namespace {options.namespace}"
        )
    if not options.mount.is_absolute():
        yield f"--mount={options.mount}: an absolute path in the pod, such as /runs"
    # The queue's name is a label's value in a manifest.
    forms = {"namespace": (label, 63), "queue": (subdomain, 63)}
    forms["service_account"] = (subdomain, 253)
    for flag, (form, longest) in forms.items():
        value = getattr(options, flag)
        if value and not (re.fullmatch(form, value) and len(value) <= longest):
            dots = ", hyphens and dots" if form == subdomain else " and hyphens"
            yield f"--{flag}={value}: a-z, 0-9{dots} only, {longest} at most"


def _wrong_job(job: Job, hosts: int, mount: Path) -> Iterator[str]:
    """A name that the cluster would refuse, and where a pod would lose its work."""
    # A pod is called <JobSet>-<role>-<job's index>-<pod's index>-<five characters>.
    longest = _LONGEST - len(f"-{_ROLE}-0-{hosts - 1}-abcde")
    if not re.fullmatch(_LABEL, job.name) or len(job.name) > longest:
        yield (
            f"the job's name {job.name!r} ({len(job.name)} characters) is none for Kubernetes: a "
            f"letter, then a-z, 0-9 and hyphens, {longest} at most on {hosts} hosts, so that its "
            f"pods' names are DNS labels of {_LONGEST}"
        )
    wanted = {
        "--workdir": f"--workdirs={mount / 'sweeps'}",
        "--results": f"--results={mount / 'results'}",
    }
    for word in job.command:
        flag, _, path = word.partition("=")
        if flag in wanted and not Path(path).is_relative_to(mount):
            yield (
                f"{word} is not under --mount={mount}, where a pod sees the volume; what it writes "
                f"elsewhere is lost with it. Give {wanted[flag]}"
            )


def check(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Raises UsageError where a manifest cannot be made, or written."""
    check_folders(options.folder)
    for job in jobs:
        manifest(job, options)


def launch(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Writes a manifest for each job, once all of them can be made.

    Into a new folder of `options.folder`, as what queues a folder would queue those of earlier
    launches too.

    Raises:
      UsageError: as `manifest`, or where the folder cannot be written to.
    """
    texts = {job.name: yaml.safe_dump(manifest(job, options), sort_keys=False) for job in jobs}
    folder = options.folder / f"{time.strftime('%Y-%m-%dT%H%M%S')}-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
        paths = [folder / f"{name}.yaml" for name in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to ({error.strerror})") from None
    for path in paths:
        print(path)
    print(f"{len(paths)} manifests; queue them with: kubectl create -f {folder}", flush=True)
