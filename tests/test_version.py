"""The version is the same everywhere, and the commit is asked once."""

import tomllib

import repvgg_jax as rj
from repvgg_jax import version
from tests.support.commands import ROOT


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "repvgg_jax.version.__version__"
    }
    assert f"\nversion: {rj.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {rj.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_commit_is_none_outside_of_a_clone(tmp_path, monkeypatch):
    here = version.git_commit()
    assert len(here["commit"] or 40 * "0") == 40
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version.git_commit() is here  # asked once
