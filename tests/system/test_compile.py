"""Tests of the command `--mode=compile`."""

import importlib.util
import json

import pytest

from tests.support.commands import main

LIBTPU = importlib.util.find_spec("libtpu") is not None
REASON = "no libtpu, the compiler for TPUs: pip install libtpu"


def test_without_libtpu():
    if LIBTPU:
        pytest.skip("libtpu is installed")
    output = main("--mode=compile", "--config", "configs/b1.py", "--topology=v5e:4x4", code=2)
    assert output.startswith("error: ")
    assert output.endswith("pip install libtpu\n")
    assert output.count("\n") == 1


def test_the_command_needs_no_data_and_leaves_a_workdir_that_trains(tmp_path):
    output = main(
        "--mode=compile",
        *("--config", "configs/a0.py", f"--config.data.data_dir={tmp_path}/none"),
        *("--config.model.widths=(8,8,8,8,8)", "--config.model.depths=(1,1,1,1,1)"),
        *("--config.data.image_size=32", "--config.model.dtype=float32", "--topology=cpu:8"),
        *("--workdir", tmp_path / "run"),
    )
    assert "widths 8-8-8-8-8) on 8 x cpu (cpu:8), 256 images per step, 32 per device" in output
    found = json.loads((tmp_path / "run/compile.json").read_text())
    assert found["devices"] == 8
    assert found["collectives"]["all-reduce"][0] > 0
    assert (tmp_path / "run/config.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason=REASON)
def test_a_slice_of_a_tpu_pod(tmp_path):
    quick = ("--config", "configs/quickstart.py")
    output = main("--mode=compile", *quick, "--topology=v5e:2x4", "--workdir", tmp_path / "tpu")
    assert "8 x TPU v5 lite" in output
    assert "of 16 " in output
    assert ": fits" in output
    main("--mode=compile", *quick, "--topology=cpu:8", "--workdir", tmp_path / "cpu")
    tpu, cpu = (json.loads((tmp_path / n / "compile.json").read_text()) for n in ("tpu", "cpu"))
    # All versions of the compiler communicate the same sums, up to a few elements.
    (_, ours), (_, theirs) = (cost["collectives"]["all-reduce"] for cost in (tpu, cpu))
    assert ours == pytest.approx(theirs, rel=0.1)
    assert tpu["flops"] == pytest.approx(cpu["flops"], rel=0.2)


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason=REASON)
def test_a_step_that_no_chip_has_memory_for():
    output = main(
        "--mode=compile",
        *("--config", "configs/quickstart.py", "--topology=v5e:1x1"),
        "--config.train.batch_size=4194304",
        code=3,
    )
    assert "train.batch_size=4194304 does not fit on 1 x TPU v5 lite" in output
    assert "15.75G" in output
    assert output.count("\n") == 1
