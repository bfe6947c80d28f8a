"""The comparison with torchvision and timm."""

import pytest

pytest.importorskip("torch", reason="torch is not installed: the other side is missing")
from experiments.reference.rounding import agree
from experiments.studies import frameworks


@pytest.mark.medium
def test_a_model_is_compared_once_and_then_skipped(tmp_path, capsys, timm):
    for _ in range(2):
        options = ["--models", "mobilenetv1_025", "--image_size", "64"]
        frameworks.main([*options, "--out", str(tmp_path)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("| `mobilenetv1_025` | timm | 470,072 | 470,072 | 467,336 | ")
    assert agree(*(float(error) for error in line.split("|")[-4:-1]))
    assert line in (tmp_path / "frameworks.md").read_text()
