"""Tests of the curves that a run draws."""

import numpy as np
import pytest

from repvgg_jax.training.curves import draw_curves, smoothed


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "kind": "train", "loss": 2.0, "top1": 0.1}],
        [{"step": s, "kind": "train", "loss": 9.0 / s, "top1": s / 99} for s in range(1, 13)],
        [{"step": 1, "kind": "eval", "loss": 2.0}],
    ],
    ids=["one row", "no eval", "eval only"],
)
def test_curves_of_little(tmp_path, rows, monkeypatch):
    """Every row is drawn at its step, even if there are only a few."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, path: figures.append(f) or save(f, path))
    for given in (rows, []):
        draw_curves(given, tmp_path / "few.png")
        assert (tmp_path / "few.png").read_bytes().startswith(b"\x89PNG")
    loss, top1 = figures[0].axes
    steps = [row["step"] for row in rows]
    losses = [row["loss"] for row in rows]
    # A longer curve is drawn twice: its values and a smoothed line.
    assert loss.lines[0].get_xdata().tolist() == steps
    assert loss.lines[0].get_ydata().tolist() == pytest.approx(losses)
    assert len(loss.lines) == (2 if len(rows) >= 10 else 1)
    assert bool(top1.lines) == ("top1" in rows[0])
    assert not any(axes.lines for axes in figures[1].axes)


def test_smoothing_keeps_a_constant_and_calms_noise():
    np.testing.assert_allclose(smoothed(np.full(30, 2.5)), 2.5)
    noise = np.random.default_rng(0).normal(size=300)
    smooth = smoothed(noise)
    assert smooth.shape == noise.shape
    assert smooth.std() < 0.4 * noise.std()
