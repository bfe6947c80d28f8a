"""Tests of JobSet manifests against the schemas that JobSet and Kubernetes publish."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from experiments.sweeps.jobs import HELD, LONGEST_NAME, STOPPED, Job
from experiments.sweeps.launchers import kubernetes
from experiments.sweeps.launchers.base import LauncherOptions, launcher
from repvgg_jax.errors import RunError, UsageError

JOB = Job(
    "branches-both-s0-1a2b3c4d5e6f",
    (
        *("python", "-m", "experiments.sweeps.run_one", "--seed=0"),
        *("--workdir=/runs/sweeps/1a2b3c4d5e6f", "--results=/runs/results"),
    ),
)
TPU = LauncherOptions(
    slice="v5e:4x4",
    image="registry.example/repvgg:1",
    queue="tpu",
    volume="gs://lab-runs/repvgg",
)
OTHERS = [
    replace(TPU, slice="v4:2x2x1", volume="claim", service_account="writer"),
    replace(TPU, slice="v6e:1x1", namespace="team"),
    replace(TPU, slice="v5p:4x4x8", restarts=0),
]
# Maps whose keys are chosen by the user.
FREE = {"labels", "annotations", "nodeSelector", "limits", "requests", "volumeAttributes"}


@pytest.fixture(scope="module")
def valid():
    """Returns a function that tells whether the published schemas accept all of a manifest.

    The models are generated from the OpenAPI documents of JobSet and Kubernetes. They check types,
    enumerations and required fields; unknown fields are dropped.
    """
    models = pytest.importorskip(
        "kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed"
    )

    def check(manifest):
        try:
            return models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest
        except (
            ValueError,
            TypeError,
            AttributeError,
        ):  # AttributeError for a string instead of a map
            return False

    return check


@pytest.mark.parametrize("options", [TPU, *OTHERS], ids=lambda options: options.slice)
def test_manifests_are_of_the_published_schema(valid, options):
    manifest = kubernetes.manifest(JOB, options)
    assert valid(manifest)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def places(tree, path=()):
    """Yields the paths to all keys of a manifest that its schema knows."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in entries:
        if isinstance(tree, dict) and not FREE & set(path):
            yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def changed(manifest, path, change):
    """Returns a copy of the manifest changed by `change(parent, key)`."""
    mutant = parent = copy.deepcopy(manifest)
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return mutant


def _misspell(parent, key):
    parent[key + "s"] = parent.pop(key)


def _wrong_type(parent, key):
    parent[key] = 1.5 if isinstance(parent[key], str) else "text"


@pytest.mark.parametrize("options", [TPU, OTHERS[0]], ids=lambda options: options.slice)
def test_every_misspelled_field_and_wrong_type_is_rejected(valid, options):
    manifest = kubernetes.manifest(JOB, options)
    paths = list(places(manifest))
    assert len(paths) > 40
    for path in paths:
        for change in (_misspell, _wrong_type):
            assert not valid(changed(manifest, path, change)), (path, change.__name__)


RULE = ("spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 0)
POD = ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec")


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "replicatedJobs", 0, "template", "spec", "completionMode"),
        (*RULE, "action"),
        (*RULE, "onExitCodes", "operator"),
        (*POD, "restartPolicy"),
    ],
    ids=lambda path: path[-1],
)
def test_unknown_values_of_enumerations_are_rejected(valid, path):
    manifest = kubernetes.manifest(JOB, TPU)
    assert not valid(changed(manifest, path, lambda parent, key: parent.update({key: "Sometimes"})))


def test_exit_codes_that_fail_the_jobset_and_that_restart_it():
    manifest = kubernetes.manifest(JOB, replace(TPU, restarts=3))
    policy = manifest["spec"]["failurePolicy"]
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    by_code, by_condition = job["podFailurePolicy"]["rules"]
    assert policy["maxRestarts"] == 3

    def action(code=None):
        """Returns JobSet's action after a pod exits with a code, or is evicted."""
        if code is None:
            assert by_condition["onPodConditions"] == [
                {"type": "DisruptionTarget", "status": "True"}
            ]
            message = (
                "Pod team/run-0 has condition DisruptionTarget matching FailJob rule at index 1"
            )
        elif code in by_code["onExitCodes"]["values"]:
            message = (  # Kubernetes', of pkg/controller/job/pod_failure_policy.go
                f"Container run for pod team/run-0 failed with exit code {code} matching FailJob "
                "rule at index 0"
            )
        else:
            return "counts"  # BackoffLimitExceeded, for which JobSet has no rule
        for rule in policy["rules"]:
            assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
            patterns = rule.get("onJobFailureMessagePatterns")
            if patterns is None or any(re.search(pattern, message) for pattern in patterns):
                return rule["action"]

    assert action(UsageError.exit_code) == "FailJobSet"
    assert action(STOPPED) == action(None) == "RestartJobSetAndIgnoreMaxRestarts"
    # The lock of a dead pod may remain for a while.
    assert {action(code) for code in (1, RunError.exit_code, HELD, 137)} == {"counts"}


def test_names_and_actions_follow_the_text_of_the_schema():
    models = pytest.importorskip(
        "kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed"
    )
    fields = models.JobsetV1alpha2FailurePolicyRule.model_fields
    output = fields["action"].description.partition("Valid values are ")[2].rstrip(".").split(", ")
    form = re.search(r'"(\^.*\$)"', fields["name"].description)[1]
    for rule in kubernetes.manifest(JOB, TPU)["spec"]["failurePolicy"]["rules"]:
        assert rule["action"] in output
        assert re.fullmatch(form, rule["name"])


def test_a_bucket_lets_checkpoints_be_renamed():
    def attributes(volume):
        manifest = kubernetes.manifest(JOB, replace(TPU, volume=volume))
        pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        return pod["volumes"][0]["csi"]["volumeAttributes"]

    options = "implicit-dirs,rename-dir-limit=200000"
    assert attributes("gs://lab") == {"bucketName": "lab", "mountOptions": options}
    assert attributes("gs://lab/a/b/")["mountOptions"] == f"{options},only-dir=a/b"


@pytest.mark.parametrize(
    ("text", "hosts", "chips"),
    [
        ("v5e:1x1", 1, 1),
        ("v5e:2x2", 1, 4),
        ("v6e:2x4", 1, 8),
        ("v5e:4x4", 4, 4),
        ("v5e:16x16", 64, 4),
        ("v4:2x2x1", 1, 4),
        ("v4:2x2x4", 4, 4),
        ("v5p:4x4x8", 32, 4),
    ],
)
def test_hosts_of_a_slice(text, hosts, chips):
    manifest = kubernetes.manifest(JOB, replace(TPU, slice=text))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["completions"] == job["parallelism"] == hosts
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == text.split(":")[1]
    assert ("annotations" in manifest["metadata"]) == (hosts > 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slice": None, "queue": None}, "needs --slice, --queue too"),
        ({"slice": "v3:2x2"}, "--slice=v3:2x2: must be v4, v5e, v5p, v6e"),
        ({"slice": "v5e:3x3"}, "the sizes of v5e are 1x1, 2x2"),
        ({"slice": "v5p:8x4x4"}, "ascending order"),
        ({"slice": "v4:2x2x3"}, "v4 are 2x2x1"),
        ({"volume": "s3://bucket"}, "--volume=s3://bucket: must be gs://BUCKET"),
        ({"mount": Path("runs")}, "--mount=runs: must be an absolute path"),
        ({"namespace": "Team"}, "--namespace=Team: must be a-z"),
        ({"namespace": "a.b"}, "--namespace=a.b: must be a-z, 0-9 and hyphens"),
        ({"queue": "q" * 64}, "hyphens and dots, at most 63 characters"),
        (
            {"slice": "v5e:3x3", "volume": "s3://bucket", "queue": "Q", "mount": Path("/data")},
            r"v5e are 1x1.*; --volume=s3.*; --queue=Q.*; --workdir=.*; --results=",
        ),
        ({"mount": Path("/runs/sweeps")}, "use --results=/runs/sweeps/results"),
        ({"mount": Path("/data")}, "use --workdirs=/data/sweeps"),
    ],
)
@pytest.mark.parametrize("ask", [kubernetes.check, kubernetes.launch])
def test_errors_are_raised_before_anything_is_written(tmp_path, ask, changes, words):
    with pytest.raises(UsageError, match=words):
        ask([JOB], replace(TPU, folder=tmp_path / "jobs", **changes))
    assert not (tmp_path / "jobs").exists()


def test_names_are_dns_labels():
    longest = "a" * LONGEST_NAME
    assert len(f"{longest}-run-0-63-abcde") == 63  # the last pod of 64
    pod = replace(TPU, slice="v5e:16x16")
    kubernetes.manifest(replace(JOB, name=longest), pod)
    for name in (longest + "a", "Branches", "branches_both", "0-branches", "branches-", ""):
        with pytest.raises(UsageError, match=r"at most 48 characters on 64 hosts.*limited to 63"):
            kubernetes.manifest(replace(JOB, name=name), pod)


def test_written_manifests_are_read_back_unchanged(tmp_path, capsys):
    jobs = [replace(JOB, name=f"branches-both-s{seed}") for seed in range(3)]
    launcher("kubernetes").launch(jobs, replace(TPU, folder=tmp_path))
    [folder] = tmp_path.iterdir()  # of this launch alone
    assert {path.name for path in folder.iterdir()} == {f"{job.name}.yaml" for job in jobs}
    for job in jobs:
        text = (folder / f"{job.name}.yaml").read_text()
        assert yaml.safe_load(text) == kubernetes.manifest(job, replace(TPU, folder=tmp_path))
        assert "&id" not in text  # no YAML anchors
    assert f"kubectl create -f {folder}\n" in capsys.readouterr().out
