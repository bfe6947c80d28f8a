"""Faults to inject into a run, and access to the files that it leaves."""

from repvgg_jax.training import train
from repvgg_jax.training.metrics import read_metrics


def steps_of(workdir, kind):
    return [row["step"] for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == kind]


def before_steps(monkeypatch, action):
    """Calls `action(state, step)` before each call that takes steps, with its last step.

    If it returns a state, the steps start from it.
    """
    original = train.open_steps

    def open_steps(*arguments):
        steps = original(*arguments)
        take = steps.take

        def disturbed(state, step, count):
            return take(action(state, step + count) or state, step, count)

        monkeypatch.setattr(steps, "take", disturbed)
        return steps

    monkeypatch.setattr(train, "open_steps", open_steps)


def before_step(monkeypatch, number, action):
    """Calls `action(state)` as `before_steps` does, but before one step, which ends a call."""
    before_steps(monkeypatch, lambda state, step: action(state) if step == number else None)


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
