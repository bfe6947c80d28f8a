"""The version is the same everywhere, and git is asked for the commit once."""

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


def test_the_commit_is_asked_once_and_none_without_git(monkeypatch):
    def no_git(*command, **options):
        raise FileNotFoundError("git")

    here = version.git_commit()
    monkeypatch.setattr(version.subprocess, "run", no_git)
    assert version.git_commit() is here
    assert version.git_commit.__wrapped__() == {"commit": None, "dirty": None}
