"""Fixtures for tests of the input pipeline."""

from __future__ import annotations

import os

import pytest

from repvgg_jax.data.sources.load import load_source
from tests.support.image_files import write_photographs, write_tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return load_source(
        "folder", "noise", os.fspath(write_tree(tmp_path_factory.mktemp("tree"))), "train"
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))
