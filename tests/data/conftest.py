"""Fixtures for tests of the input pipeline."""

from __future__ import annotations

import os
import pathlib

import pytest

from repvgg_jax.data.sources.load import load_source
from tests.support.image_files import write_tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return load_source(
        "folder", "noise", os.fspath(write_tree(tmp_path_factory.mktemp("tree"))), "train"
    )


@pytest.fixture(scope="module")
def real_data():
    beside = pathlib.Path(__file__).resolve().parents[3] / "shared"
    root = pathlib.Path(os.environ.get("REPVGG_JAX_TEST_DATA", beside))
    if not (root / "tensorflow_datasets").is_dir():
        pytest.skip(f"no real data in {root}; set REPVGG_JAX_TEST_DATA to where it is")
    return root
