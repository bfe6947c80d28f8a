"""`--mode=export`."""

import json
import logging
import shutil

import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.cli.export import run_export
from repvgg_jax.data.augment.transforms import Transform
from repvgg_jax.export.stablehlo_file import read_stablehlo
from repvgg_jax.serve.model import eval_transform
from tests.support.image_files import write_tree


def change_config(workdir, section, **fields):
    config = json.loads((workdir / "config.json").read_text())
    config[section].update(fields)
    (workdir / "config.json").write_text(json.dumps(config))


@pytest.mark.medium
def test_a_run_becomes_verified_files(undisturbed, tmp_path, capsys, caplog):
    workdir = shutil.copytree(undisturbed[1], tmp_path / "run")
    with caplog.at_level(logging.INFO, "repvgg_jax"):
        run_export(workdir, ["stablehlo"], preprocess=True)
    assert "fusing the checkpoint of step 4 first, and verifying it; evaluation" in caplog.text
    assert caplog.messages[-1].endswith("over batches of 1 and 3 evaluation images")
    header, row = (line.split() for line in capsys.readouterr().out.splitlines())
    program, metadata = read_stablehlo(workdir / "export" / "model.stablehlo")
    assert header[:2] == ["format", "file"]
    assert row == ["stablehlo", str(workdir / "export" / "model.stablehlo"), *row[2:4], row[-1]]
    assert float(row[-1]) == pytest.approx(metadata.export_error, rel=0.1)
    assert metadata.names == tuple("0123456789")
    assert (metadata.image_size, metadata.crop_pct, metadata.preprocess) == (8, 1.0, True)
    assert metadata.fusion_error is not None
    entry = json.loads((workdir / "report.json").read_text())["export"]["stablehlo"]
    assert entry["file"] == "export/model.stablehlo"
    assert (entry["step"], entry["form"], entry["images"]) == (4, "fused", "evaluation")
    assert entry["relative_error"] == metadata.export_error < 1e-5
    assert program.in_avals[0].dtype == np.uint8

    write_tree(tmp_path / "two", classes="01", count=1)
    (workdir / "classes.json").unlink()  # the two images are of two classes
    change_config(workdir, "fuse", verify_images=8)
    change_config(workdir, "data", source="folder", augmentation="resized_crop", resize=11)
    for folder, kind, count, remark in [
        ("two", "evaluation", 2, ", 2 different"),
        ("none", "random", 8, ""),
    ]:
        change_config(workdir, "data", data_dir=str(tmp_path / folder))
        shutil.rmtree(workdir / "fused")
        with caplog.at_level(logging.INFO, "repvgg_jax"):
            run_export(workdir, ["stablehlo"], step=4)
        assert f"and verifying it; {kind} images: {count}" in caplog.text
        assert caplog.messages[-1].endswith(f"1 and 3 {kind} images{remark}")
        certificate = json.loads((workdir / "fusion.json").read_text())
        assert (certificate["image_kind"], certificate["images"]) == (kind, count)
        entry = json.loads((workdir / "report.json").read_text())["export"]["stablehlo"]
        assert (entry["images"], entry["different_images"]) == (kind, min(count, 4))
    assert "random images are used for the verification: " in caplog.text
    _, metadata = read_stablehlo(workdir / "export" / "model.stablehlo")
    assert eval_transform(metadata) == Transform("resized_crop", 8, resize=11)

    shutil.rmtree(workdir / "fused")
    change_config(workdir, "model", block="relu_in_branch")
    with pytest.raises(rj.UsageError, match=r"block='relu_in_branch' .* --allow_train_form"):
        run_export(workdir, ["stablehlo"])
    run_export(workdir, ["stablehlo"], allow_train_form=True)
    _, metadata = read_stablehlo(workdir / "export" / "model.stablehlo")
    assert (metadata.form, metadata.fusion_error) == ("train form", None)


@pytest.mark.parametrize(
    ("formats", "options", "message"),
    [
        (["onyx"], {}, "unknown --format 'onyx': did you mean onnx"),
        ([], {}, "--format is empty; choose from onnx, stablehlo"),
        (["stablehlo"], {"opset": 18}, "--opset has no effect on stablehlo; it is for onnx"),
        (["stablehlo"], {"opset": 0}, "--opset has no effect on stablehlo; it is for onnx"),
        (["safetensors"], {"preprocess": True}, "no effect on safetensors; it is for onnx, stable"),
        (["stablehlo"], {}, "no run in"),
    ],
)
def test_wrong_arguments_are_one_line_each(formats, options, message, tmp_path):
    with pytest.raises(rj.UsageError, match=message):
        run_export(tmp_path / "run", formats, **options)
