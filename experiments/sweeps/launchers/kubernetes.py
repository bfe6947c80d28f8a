"""The launcher `kubernetes`: a JobSet for each run on a TPU slice of GKE, queued by Kueue.

It writes manifests but does not submit them. Use `kubectl create -f`, which does not change
existing jobs; `kubectl apply` would suspend running ones.
"""

import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments.sweeps.jobs import Job
from experiments.sweeps.launchers.base import LauncherOptions, check_folders
from repvgg_jax.errors import UsageError

FLAGS = {
    *("folder", "grace", "restarts", "slice", "image", "queue", "namespace", "volume", "mount"),
    "service_account",
}
_TEMPLATE = Path(__file__).with_name("jobset.yaml")
_LABEL = r"[a-z]([-a-z0-9]*[a-z0-9])?"  # a DNS label in RFC 1035
_LONGEST = 63
# Generation -> GKE's name for it, and the number of axes of its torus (Google Cloud, "Plan TPUs in
# GKE"). In a slice of one host, that host has all chips; in larger slices each host has four.
_ACCELERATORS = {
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
}
_CHIPS_PER_HOST = 4
_PLANES = ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"]
_SMALL_CUBES = ["2x2x1", "2x2x2", "2x2x4", "2x4x4"]


class Slice(NamedTuple):
    """A TPU slice in GKE's terms."""

    accelerator: str  # label of the machine type
    topology: str  # chips along each axis, such as `4x4`
    hosts: int
    chips: int  # per host


def parse_slice(text: str) -> Slice:
    """Parses a slice, if GKE has it: `v5e:4x4` has 4 hosts of 4 chips."""
    name, _, topology = text.partition(":")
    if name not in _ACCELERATORS:
        raise UsageError(f"--slice={text}: must be {', '.join(_ACCELERATORS)} and a size (v5e:4x4)")
    accelerator, axes = _ACCELERATORS[name]
    if axes == 2 and topology not in _PLANES:
        raise UsageError(f"--slice={text}: the sizes of {name} are {', '.join(_PLANES)}")
    if axes == 3 and topology not in _SMALL_CUBES and not _is_large_cube(topology):
        raise UsageError(
            f"--slice={text}: the sizes of {name} are {', '.join(_SMALL_CUBES)}, and three "
            "multiples of 4 in ascending order, such as 4x4x8"
        )
    chips = math.prod(int(size) for size in topology.split("x"))
    if topology == "2x4" or chips < _CHIPS_PER_HOST:
        return Slice(accelerator, topology, 1, chips)
    return Slice(accelerator, topology, chips // _CHIPS_PER_HOST, _CHIPS_PER_HOST)


def _is_large_cube(topology: str) -> bool:
    if not re.fullmatch(r"[1-9]\d?x[1-9]\d?x[1-9]\d?", topology):
        return False
    sizes = [int(size) for size in topology.split("x")]
    return sizes == sorted(sizes) and all(size % 4 == 0 for size in sizes)


def manifest(job: Job, options: LauncherOptions) -> dict[str, Any]:
    """Returns the JobSet of one run: a pod on each host of the slice, restarted together.

    A pod that is asked to stop exits with `STOPPED`. Such an exit, or an eviction, restarts the run
    without counting towards its limit of restarts. A UsageError fails the JobSet immediately.
    Options that the cluster would reject raise UsageError here, listing all.
    """
    tpu = _checked(job, options)
    jobset = yaml.safe_load(_TEMPLATE.read_text(encoding="utf-8"))
    jobset["metadata"] = {
        "name": job.name,
        "namespace": options.namespace,
        "labels": {"kueue.x-k8s.io/queue-name": options.queue},
    }
    if tpu.hosts > 1:  # all pods run on one slice, not shared with other runs
        exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        jobset["metadata"]["annotations"] = {exclusive: "cloud.google.com/gke-nodepool"}
    jobset["spec"]["failurePolicy"]["maxRestarts"] = options.restarts
    batch_job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    batch_job |= {"completions": tpu.hosts, "parallelism": tpu.hosts}
    pod = batch_job["template"]
    if options.volume.startswith("gs://"):
        pod["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    pod["spec"] |= {
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": tpu.accelerator,
            "cloud.google.com/gke-tpu-topology": tpu.topology,
        },
        "volumes": [{"name": "runs", **_volume(options.volume)}],
    }
    if options.service_account is not None:
        pod["spec"]["serviceAccountName"] = options.service_account
    pod["spec"]["containers"][0] |= {
        "image": options.image,
        "command": list(job.command),
        "resources": {
            "requests": {"google.com/tpu": tpu.chips},
            "limits": {"google.com/tpu": tpu.chips},
        },
        "volumeMounts": [{"name": "runs", "mountPath": str(options.mount)}],
    }
    return jobset


def _volume(text: str) -> dict[str, Any]:
    """Returns the source of a volume: a bucket or a claim."""
    if not text.startswith("gs://"):
        return {"persistentVolumeClaim": {"claimName": text}}
    bucket, _, folder = text.removeprefix("gs://").strip("/").partition("/")
    # The folder of a finished checkpoint is renamed, which gcsfuse does not allow by default.
    mount_options = "implicit-dirs,rename-dir-limit=200000"
    if folder:
        mount_options += f",only-dir={folder}"
    attributes = {"bucketName": bucket, "mountOptions": mount_options}
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}


def _checked(job: Job, options: LauncherOptions) -> Slice:
    """Returns the slice, or raises UsageError listing all problems of the options and the job."""
    required = ("slice", "image", "queue", "volume")
    problems: list[str] = []
    tpu = None
    if missing := [f"--{name}" for name in required if not getattr(options, name)]:
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
            f"--volume={options.volume}: must be gs://BUCKET[/FOLDER], or the name of a claim "
            f"in the namespace {options.namespace}"
        )
    if not options.mount.is_absolute():
        yield f"--mount={options.mount}: must be an absolute path in the pod, such as /runs"
    # The queue's name is the value of a label in a manifest.
    forms = {"namespace": (label, 63), "queue": (subdomain, 63)}
    forms["service_account"] = (subdomain, 253)
    for flag, (form, longest) in forms.items():
        value = getattr(options, flag)
        if value and not (re.fullmatch(form, value) and len(value) <= longest):
            allowed = ", hyphens and dots" if form == subdomain else " and hyphens"
            yield f"--{flag}={value}: must be a-z, 0-9{allowed}, at most {longest} characters"


def _wrong_job(job: Job, hosts: int, mount: Path) -> Iterator[str]:
    """Yields problems of a job: a name that is too long, paths that are lost with the pod."""
    # A pod is named <JobSet>-run-<index of the job>-<index of the pod>-<five characters>.
    longest = _LONGEST - len(f"-run-0-{hosts - 1}-abcde")
    if not re.fullmatch(_LABEL, job.name) or len(job.name) > longest:
        yield (
            f"job name {job.name!r} ({len(job.name)} characters) is not a valid Kubernetes name: "
            f"it must be a letter, then a-z, 0-9 and hyphens, at most {longest} characters on "
            f"{hosts} hosts, since the names of its pods are limited to {_LONGEST}"
        )
    wanted = {
        "--workdir": f"--workdirs={mount / 'sweeps'}",
        "--results": f"--results={mount / 'results'}",
    }
    for word in job.command:
        flag, _, path = word.partition("=")
        if flag in wanted and not Path(path).is_relative_to(mount):
            yield (
                f"{word} is not under --mount={mount}, the only path that outlives a pod; use "
                f"{wanted[flag]}"
            )


def check(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Raises UsageError if a manifest cannot be made or written."""
    check_folders(options.folder)
    for job in jobs:
        manifest(job, options)


def launch(jobs: Sequence[Job], options: LauncherOptions) -> None:
    """Writes a manifest for each job into a new folder in `options.folder`.

    The folder is new, since `kubectl create -f` would also queue manifests of earlier launches.
    """
    texts = {job.name: yaml.safe_dump(manifest(job, options), sort_keys=False) for job in jobs}
    folder = options.folder / f"{time.strftime('%Y-%m-%dT%H%M%S')}-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
        paths = [folder / f"{name}.yaml" for name in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror})") from None
    for path in paths:
        print(path)
    print(f"{len(paths)} manifests; queue them with: kubectl create -f {folder}", flush=True)
