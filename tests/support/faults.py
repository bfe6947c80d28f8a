"""Faults to inject into a run, and access to the files that it leaves."""

from repvgg_jax.runtime import mesh as mesh_module
from repvgg_jax.training import prefetch
from repvgg_jax.training.metrics import read_metrics


def steps_of(workdir, kind):
    return [row["step"] for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == kind]


def at_batch(monkeypatch, number, action):
    """Calls `action` with the batch of a number, counted from 1, before it goes to the devices."""
    taken, original = 0, mesh_module.shard_batch

    def shard_batch(batch, mesh):
        nonlocal taken
        taken += 1
        return original(action(batch) or batch if taken == number else batch, mesh)

    monkeypatch.setattr(prefetch, "shard_batch", shard_batch)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def data_files(workdir, step, item):
    """Returns the files that contain arrays, the largest first."""
    files = (workdir / f"checkpoints/{step}/{item}").rglob("d/*")
    return sorted(files, key=lambda path: -path.stat().st_size)
