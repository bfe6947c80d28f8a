"""Damaged checkpoints are moved aside, and the one before is used."""

import errno
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.checkpoint import manager
from repvgg_jax.checkpoint.fused import fused_step
from repvgg_jax.checkpoint.integrity import check_shapes, read_named
from repvgg_jax.cli import fuse
from repvgg_jax.errors import DamagedError, RunError
from tests.support.faults import data_files, flip, truncate
from tests.support.runs import equal, tiny_config, train


@pytest.mark.slow
def test_the_certificate_names_the_step_that_was_fused(tmp_path):
    """The fused step is not the latest one if that is damaged."""
    train(tiny_config(), tmp_path)
    flip(data_files(tmp_path, 4, "variables")[0])
    fuse.run_fuse(None, tmp_path)
    assert fused_step(tmp_path) == 2


@pytest.mark.medium
@pytest.mark.parametrize("item", ["variables", "optimizer"])
@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    item, damage, undisturbed, tmp_path, caplog
):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    damage(data_files(tmp_path / "run", 4, item)[0])
    if item == "variables":
        with caplog.at_level(logging.WARNING):
            _, variables = rj.load(tmp_path / "run")
        assert "checkpoints/4 cannot be read" in caplog.text
        equal(variables, rj.load(undisturbed[1], step=2)[1])
        with pytest.raises(rj.UsageError, match="checkpoints/4 cannot be read"):
            rj.load(tmp_path / "run", step=4)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        state = train(tiny_config(), tmp_path / "run").state
    assert "checkpoints/4 cannot be read" in caplog.text
    assert "using step 2 instead" in caplog.text
    equal(state.eval_variables, undisturbed[0].eval_variables)
    equal(state.optimizer_state, undisturbed[0].optimizer_state)
    assert manager.steps(tmp_path / "run") == [2, 4]
    assert (tmp_path / "run/damaged/4").is_dir()


@pytest.mark.medium
def test_where_no_checkpoint_can_be_read_nothing_starts_again(undisturbed, tmp_path):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    for step in (2, 4):
        truncate(data_files(tmp_path / "run", step, "variables")[0])
    with pytest.raises(
        rj.UsageError,
        match=r"checkpoints/2 cannot be read .*; no readable checkpoint is left: restore one",
    ):
        train(tiny_config(), tmp_path / "run")
    assert manager.steps(tmp_path / "run") == [2, 4]


@pytest.mark.medium
def test_a_save_that_died_half_way_is_no_checkpoint(undisturbed, tmp_path):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / "4").rename(checkpoints / "4.orbax-checkpoint-tmp")
    shutil.rmtree(checkpoints / "4.orbax-checkpoint-tmp/optimizer")
    assert manager.steps(tmp_path / "run") == [2]
    equal(
        train(tiny_config(), tmp_path / "run").state.eval_variables, undisturbed[0].eval_variables
    )
    assert [path.name for path in checkpoints.glob("*tmp*")] == []


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EMFILE, "x"), RunError),
        (PermissionError(errno.EACCES, "x"), RunError),
        (MemoryError(), RunError),
        (ValueError("os_error_code='13'"), RunError),
        (FileNotFoundError(errno.ENOENT, "x"), DamagedError),
        (ValueError("torn"), DamagedError),
    ],
    ids=str,
)
def test_files_that_cannot_be_read_now_are_not_taken_for_damaged(error, raised):
    """Damaged checkpoints are moved aside; intact ones must not be, for lack of file handles."""

    def read():
        raise error

    with pytest.raises(RunError) as caught:
        read_named(Path("here"), read)
    assert type(caught.value) is raised


def test_a_checkpoint_with_former_parameter_names_says_so():
    saved = {"params": {"stage0_block0": {"conv3": {"kernel": np.ones(2)}, "bn0": np.ones(2)}}}
    net = {"params": {"stage0_block0": {"conv_kxk": {"kernel": np.ones(2)}}}}
    metadata = SimpleNamespace(tree=saved)
    with pytest.raises(rj.UsageError, match=r"an earlier version .* \(bn0, conv3\); open it with"):
        check_shapes(Path("checkpoints/4"), net, metadata)
