"""Flags of the server."""

import pytest

from repvgg_jax.errors import UsageError
from repvgg_jax.serve.__main__ import arguments


@pytest.mark.parametrize("flag", ["max_batch=0", "timeout=0", "timeout=nan", "max_bytes=-1"])
def test_limits_that_admit_nothing_are_one_line(flag):
    with pytest.raises(UsageError, match=rf"--{flag[:7]}.* is too small; --help"):
        arguments(["--model=a.onnx", f"--{flag}"])


def test_zero_is_any_port_and_no_delay():
    options = arguments(["--model=a.onnx", "--port=0", "--max_delay_ms=0", "--step=0"])
    assert (options.port, options.max_delay_ms, options.step) == (0, 0.0, 0)
