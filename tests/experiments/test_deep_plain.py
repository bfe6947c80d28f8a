"""Compile times of the study of deep plain nets."""

import pytest

from experiments.studies.deep_plain import compile_seconds


@pytest.mark.medium
def test_a_step_and_an_initialization_are_compiled():
    assert min(compile_seconds(depth=2)) > 0
