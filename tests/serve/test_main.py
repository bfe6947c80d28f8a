"""Flags of the server."""

import pytest

from repvgg_jax.errors import UsageError
from repvgg_jax.serve.__main__ import address, arguments, compiled_model
from tests.support.color_model import write_color_model


@pytest.mark.parametrize(
    "flag", ["max_batch=0", "timeout=0", "timeout=nan", "timeout=inf", "max_bytes=-1"]
)
def test_limits_that_admit_nothing_are_one_line(flag):
    with pytest.raises(UsageError, match=rf"--{flag[:7]}.*: must be above 0 and finite; --help"):
        arguments(["--model=a.onnx", f"--{flag}"])


def test_zero_is_any_port_and_no_delay():
    options = arguments(["--model=a.onnx", "--port=0", "--max_delay_ms=0", "--step=0"])
    assert (options.port, options.max_delay_ms, options.step) == (0, 0.0, 0)


def test_batches_beyond_those_of_the_model_are_one_line(tmp_path):
    path = write_color_model(tmp_path / "a.onnx")
    assert compiled_model(path, None, None)[1] == compiled_model(path, None, 32)[1] == 32
    with pytest.raises(UsageError, match=r"--max_batch=33: a.onnx.* takes at most 32 images"):
        compiled_model(path, None, 33)


def test_an_address_is_that_of_a_url():
    assert [address(host, 80) for host in ("a.b", "::1")] == ["a.b:80", "[::1]:80"]
