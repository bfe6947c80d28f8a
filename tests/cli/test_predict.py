"""Tests of `--mode=predict`, `rj.predict` and `rj.preprocess` on the digits."""

import csv
import json
import logging
import os
import re
import sys

import numpy as np
import pytest

import repvgg_jax as rj
from configs import folder as folder_config
from repvgg_jax.cli.predict import run_predict
from repvgg_jax.config.build import make_net
from repvgg_jax.config.workdir import make_workdir
from repvgg_jax.data.sources.digits import load_digits
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.runtime.output import Output
from repvgg_jax.training.metrics import read_metrics
from tests.support.color_model import NAMES, write_color_model
from tests.support.image_files import encoded, write
from tests.support.runs import tiny_config
from tests.support.serving import colored


@pytest.mark.medium
def test_the_accuracy_is_that_of_the_evaluation(undisturbed, tmp_path, capsys, caplog, monkeypatch):
    workdir, folder = undisturbed[1], tmp_path / "digits"
    digits = load_digits("test")
    for index, (image, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
        write(folder / str(label) / f"{index:03}.png", encoded(image))
    write(folder / "damaged.jpg", b"not a picture")
    (folder / "dangling.jpg").symlink_to("lost.jpg")
    write(folder / "notes.txt", b"")
    with caplog.at_level(logging.INFO, "repvgg_jax"):
        run_predict(workdir, folder, 1, tmp_path / "classes.csv")
    out = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    right = [os.path.basename(os.path.dirname(row["file"])) == row["class"] for row in rows]
    evaluated = [row for row in read_metrics(workdir / "metrics.jsonl") if row["kind"] == "eval"]
    assert np.mean(right) == pytest.approx(evaluated[-1]["top1"])
    assert [line.split() for line in out.splitlines()] == [
        ["file", "class", "probability"],
        *([row["file"], row["class"], f"{float(row['probability']):.4f}"] for row in rows),
    ]
    assert f"{workdir}: train form, step 4; 362 images" in caplog.messages
    assert f"{folder}: left out 1 .txt" in caplog.messages
    assert "left out 2 of 362 files, which are named above" in caplog.messages
    # Files are read ahead by several threads, so either may be found first.
    skipped = re.findall(r"(\w+\.jpg) \((\d) so far\): (.*)", caplog.text)
    assert sorted(number for _, number, _ in skipped) == ["1", "2"]
    assert sorted((name, cause) for name, _, cause in skipped) == [
        ("damaged.jpg", "cannot identify image file"),
        ("dangling.jpg", "a link to lost.jpg, which does not exist"),
    ]

    images = rj.preprocess([row["file"] for row in rows[:5]], workdir)
    probabilities = rj.predict(*rj.load(workdir), images)
    assert probabilities.sum(-1) == pytest.approx(1)
    given = [float(row["probability"]) for row in rows[:5]]
    assert probabilities.max(-1) == pytest.approx(given, rel=1e-4)
    in_memory = rj.preprocess(digits.images[digits.labels == 0][:5], tiny_config())
    np.testing.assert_array_equal(images, in_memory)

    file = folder / "0" / os.path.basename(rows[0]["file"])
    run_predict(workdir, file, 3, tmp_path / "classes.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "classes.jsonl").read_text().splitlines()]
    best = np.argsort(-probabilities[0])[:3]
    assert [row["class"] for row in rows] == [str(k) for k in best]
    assert [row["probability"] for row in rows] == pytest.approx(probabilities[0, best], rel=1e-4)
    assert {row["file"] for row in rows} == {str(file)}
    with caplog.at_level(logging.INFO, "repvgg_jax"):
        run_predict(workdir, file, 1, tmp_path / "classes.jsonl")
    assert caplog.messages[-1].endswith("classes.jsonl, in place of an earlier file")
    capsys.readouterr()
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does
    with open(writer, "w") as left, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Output(left))
        run_predict(workdir, file, 3, None)
    with pytest.raises(UsageError, match="no checkpoint of step 3"):
        run_predict(workdir, file, 1, None, step=3)
    with pytest.raises(UsageError, match=r"damaged.jpg: nothing in it can be read as an image"):
        run_predict(workdir, folder / "damaged.jpg", 1, None)
    with pytest.raises(UsageError, match="top_k=11: the net has 10 classes; give 1 to 10"):
        run_predict(workdir, file, 11, None)
    assert not capsys.readouterr().out  # no table


def test_an_exported_file_classifies_a_folder(tmp_path, capsys, caplog):
    model = write_color_model(tmp_path / "colors.onnx")
    for name in NAMES:
        write(tmp_path / "photos" / f"{name}.png", colored({"green": "lime"}.get(name, name)))
    write(tmp_path / "photos/damaged.jpg", colored("red")[:-20])
    with caplog.at_level(logging.INFO, "repvgg_jax"):
        run_predict(None, tmp_path / "photos", 1, tmp_path / "out.jsonl", model=model)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["class"] for row in rows] == sorted(NAMES)
    assert [os.path.basename(row["file"])[:-4] for row in rows] == sorted(NAMES)
    assert "colors.onnx: fused, colors; 4 images" in caplog.messages
    assert "left out 1 of 4 files, which are named above" in caplog.messages
    assert re.search(r"classified 3 images in \d+\.\d s, [\d,]+ images/s", caplog.text)
    with pytest.raises(UsageError, match="top_k=4: the net has 3 classes; give 1 to 3"):
        run_predict(None, tmp_path / "photos", 4, None, model=model)
    for workdir, file in [(None, None), (tmp_path, model)]:
        with pytest.raises(UsageError, match="needs --workdir or --model, and not both"):
            run_predict(workdir, tmp_path, 1, None, model=file)
    capsys.readouterr()


def test_a_name_that_is_not_utf8_is_escaped(tmp_path, capsys):
    model = write_color_model(tmp_path / "colors.onnx")
    name = os.fsdecode(b"caf\xe9.png")
    write(tmp_path / "photos" / name, colored("red"))
    for kind in ("csv", "jsonl"):
        run_predict(None, tmp_path / "photos", 1, tmp_path / f"out.{kind}", model=model)
        assert r"caf\udce9.png  red" in capsys.readouterr().out
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["file"] == str(tmp_path / "photos" / name)
    (row,) = csv.DictReader((tmp_path / "out.csv").open())
    assert row["file"] == str(tmp_path / "photos" / r"caf\udce9.png")


@pytest.mark.filterwarnings("ignore:overflow")
def test_an_error_leaves_an_earlier_file_as_it_was(tmp_path, monkeypatch):
    model = write_color_model(tmp_path / "colors.onnx")
    # Brighter pixels than black overflow float32.
    wide = write_color_model(tmp_path / "wide.onnx", mean=(0.0,) * 3, std=(1e-39,) * 3)
    write(tmp_path / "photos/black.png", colored("black", kind="PNG"))
    write(tmp_path / "photos/red.png", colored("red"))
    write(tmp_path / "damaged/red.png", colored("red")[:-20])
    output, draft = tmp_path / "out.csv", tmp_path / "out.csv.part"

    def refused(folder="photos", model=model, output=output, kind=UsageError):
        with pytest.raises(RunError) as caught:
            run_predict(None, tmp_path / folder, 1, output, model=model)
        assert caught.type is kind
        assert "\n" not in str(caught.value)
        assert (tmp_path / "out.csv").read_text() == "earlier\n"
        assert not draft.exists()
        return str(caught.value)

    output.write_text("earlier\n")
    assert "nothing in it can be read as an image" in refused("damaged")
    message = refused(model=wide, kind=RunError)
    assert message.startswith("wide.onnx: fused, colors: the outputs for ")
    assert message.endswith("red.png are not finite numbers")
    draft.symlink_to("/dev/full")
    message = refused()
    assert message == f"--output={output} cannot be written (No space left on device)"
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Output(full))
        message = refused(kind=RunError)
    assert message == "standard output cannot be written (No space left on device)"
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in refused(output=tmp_path / "folder.csv")
    run_predict(None, tmp_path / "photos", 1, output, model=model)
    assert output.read_text().startswith("file,class,probability\n")
    assert not draft.exists()


def test_wrong_arguments_are_one_line(tmp_path):
    run = tmp_path / "run"
    make_workdir(tiny_config().to_dict(), run)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").touch()
    (tmp_path / "a.png").touch()
    (tmp_path / "lost.png").symlink_to("b.png")

    def refused(workdir=run, images=tmp_path / "a.png", top_k=1, output=None):
        with pytest.raises(UsageError) as caught:
            run_predict(workdir, images, top_k, output)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no run in" in refused(workdir=tmp_path / "none")
    assert "its suffix must be .csv or .jsonl" in refused(output=tmp_path / "a.txt")
    assert "no such file or folder" in refused(images=tmp_path / "none")
    assert "a link to b.png, which does not exist" in refused(images=tmp_path / "lost.png")
    assert "no images such as .jpg or .png, but 1 .txt" in refused(images=tmp_path / "texts")
    assert "no checkpoint under" in refused()
    make_workdir(tiny_config().to_dict(), run, [*map(str, range(11))])
    assert f"{run} names 11 classes, but its net has 10 outputs" in refused()


def test_paths_and_raw_pixels_are_not_predicted():
    net = make_net(tiny_config())
    pixels = np.full((3, 8, 8, 3), 255.0, np.float32)
    for images, expected in [
        (["a.jpg"], "takes arrays, not paths"),
        ("a.jpg", "not paths"),
        (pixels, "up to 255"),
    ]:
        with pytest.raises(UsageError, match=rf"{expected}.*; preprocess first: rj\.predict\("):
            rj.predict(net, {"params": {}}, images)


def test_images_that_are_not_rgb_bytes_are_refused():
    config = tiny_config()
    for image in (np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8, 3)), [np.zeros((8, 8, 4), "u1")]):
        with pytest.raises(UsageError, match=r"images\[0\] is .* takes RGB pixels"):
            rj.preprocess(image, config)
    with pytest.raises(UsageError, match=r"leaves data\.augmentation, .* give the workdir"):
        rj.preprocess("a.png", folder_config.get_config())
    shapes = [rj.preprocess(np.zeros(s, np.uint8), config).shape for s in ((9, 9, 3), (0, 9, 9, 3))]
    assert shapes == [(1, 8, 8, 3), (0, 8, 8, 3)]
