"""The documentation names only commands, flags, config fields, files and links that exist."""

import pytest

from docs.check.execution import run
from docs.check.pages import ROOT, blocks, commands, pages
from docs.check.static import static_problems


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    assert static_problems(page) == []


def test_a_wrong_page_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "[a](missing.md) and `model.nonsense` and `repvgg_jax.nonsense`\n"
        "```\nmake nonsense\npython main.py --mode=nonsense --config configs/a0.py\n"
        "python main.py --config configs/a0.py --config.model.nonsense=1\n"
        "python main.py --config configs/a0.py --nonsense\n"
        "python -m experiments.studies.segmentation --nonsense\n"
        "python -m experiments.status --help\n```\n"
        "```python\nimport repvgg_jax as rj\nrj.nonsense()\n```\n"
        "```python\nfrom repvgg_jax.affine import nonsense\n1 +\n```\n"
    )
    problems = static_problems(page)
    assert len([problem for problem in problems if "nonsense" in problem]) == 8
    assert any("missing.md" in problem for problem in problems)
    assert any("snippet" in problem for problem in problems)


def test_commands_of_a_block_are_joined_and_stripped(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run with: --c -->\n```\na --b \\\n    --d   # why\n# all\n\ne && f\n```\n"
    )
    (block,) = blocks(page)
    assert commands(block) == ["a --b      --d", "e", "f"]
    assert (block.annotation, block.argument, block.line) == ("run with", "--c", 2)


@pytest.mark.system
def test_a_command_that_fails_is_counted(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(
        "```\ntrue\nfalse\n```\n<!-- not run: needs a GPU -->\n```\nfalse\n```\n"
        "```python\nx = 1\n```\n```python\nassert x == 2\n```\n"
    )
    assert run(page, tmp_path) == 2
    assert "not run: needs a GPU" in capsys.readouterr().out
