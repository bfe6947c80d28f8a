"""Configs whose unset fields class folders determine."""

from __future__ import annotations

import json
import logging
import os

import pytest

import repvgg_jax as rj
from configs import folder, quickstart
from repvgg_jax.cli.evaluate import evaluation_config
from repvgg_jax.cli.modes import MODES
from repvgg_jax.cli.train import run_train
from repvgg_jax.config.build import build
from repvgg_jax.config.fields import config_hash, flat
from repvgg_jax.config.resolve import REQUIRED, recipe, resolve
from repvgg_jax.data.sources.folder_summary import FolderSummary
from repvgg_jax.errors import Stopped
from tests.support.image_files import encoded, noise, write, write_tree
from tests.support.messages import one_line
from tests.support.runs import train

GIVEN = dict(flat(folder.get_config().to_dict()))


def summary(side=300, train=(24, 24, 24), test=(6, 6, 6), only_one=True):
    classes = tuple(f"c{k:03}" for k in range(len(train)))
    return FolderSummary("/data", classes, train, test, side, only_one)


def config_of(root, **fields):
    config = folder.get_config()
    config.data.data_dir = os.fspath(root)
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize(
    ("side", "size", "strides"),
    [
        (5, 5, (1, 1, 1, 1, 1)),
        (8, 8, (1, 2, 1, 1, 1)),
        (28, 28, (1, 2, 2, 1, 1)),
        (32, 32, (1, 2, 2, 2, 1)),
        (50, 48, (1, 2, 2, 2, 1)),
        (100, 96, (2, 2, 2, 2, 1)),
        (375, 128, (2, 2, 2, 2, 2)),
    ],
)
def test_the_net_fits_the_size_of_the_images(side, size, strides):
    values = recipe(GIVEN, summary(side), on_accelerator=False)
    assert (values["data.image_size"], values["model.strides"]) == (size, strides)


def test_few_images_get_the_same_run_everywhere_and_many_a_larger_one_on_a_gpu():
    few = [recipe(GIVEN, summary(), on_accelerator) for on_accelerator in (False, True)]
    for name in ("data.image_size", "model.widths", "train.batch_size", "data.holdout"):
        assert few[0][name] == few[1][name]
    large = summary(train=(800,) * 100, test=(200,) * 100, only_one=False)
    cpu, gpu = (recipe(GIVEN, large, on_accelerator) for on_accelerator in (False, True))
    assert cpu["model.num_classes"] == gpu["model.num_classes"] == 100
    assert (cpu["data.image_size"], gpu["data.image_size"]) == (128, 224)
    assert "model.widths" not in gpu
    assert cpu["train.steps"] * cpu["train.batch_size"] < gpu["train.steps"] * 256
    assert "data.holdout" not in cpu


def test_given_values_win_and_determine_others():
    given = GIVEN | {"data.image_size": 64, "train.batch_size": 32, "train.epochs": 10.0}
    values = recipe(given, summary(), on_accelerator=False)
    assert given.items() - {(k, v) for k, v in given.items() if v is None} <= values.items()
    assert values["train.steps"] == 22  # 10 epochs of 72 images
    assert values["model.strides"] == (2, 2, 2, 2, 1)
    assert values["data.augmentation"] == "pad_crop"
    named = recipe(GIVEN | {"model.name": "repvgg_b0"}, summary(), on_accelerator=False)
    assert "model.strides" not in named


def test_a_run_to_start_from_determines_the_net():
    start = GIVEN | {
        "model.name": "repvgg_a1",
        "model.block": "acb",
        "data.image_size": 160,
        "data.mean": [0.5, 0.5, 0.5],
        "data.std": [0.25, 0.25, 0.25],
    }
    values, scratch = (recipe(GIVEN, summary(), False, other) for other in (start, None))
    assert (values["model.name"], values["model.block"]) == ("repvgg_a1", "acb")
    assert (values["data.image_size"], values["data.resize"]) == (160, 182)
    assert values["model.num_classes"] == 3
    assert values.get("model.widths") is None
    assert values["optim.learning_rate"] < scratch["optim.learning_rate"]
    assert values["train.steps"] < scratch["train.steps"]


def test_a_complete_config_is_returned_as_it_is():
    config = quickstart.get_config()
    assert resolve(config) is config


def test_unusable_folders_are_one_line(tmp_path, caplog):
    with pytest.raises(rj.UsageError, match=r"set --config\.data\.data_dir=FOLDER"):
        resolve(folder.get_config())
    write_tree(tmp_path, splits=("",), classes=("ant",))
    with pytest.raises(rj.UsageError) as error:
        resolve(config_of(tmp_path))
    one_line(error, tmp_path, "one class folder, ant")
    write(tmp_path / "bee" / "0.png", b"")
    for i in range(20):
        write(tmp_path / "cow" / f"{i}.png", encoded(noise(i)))
    with caplog.at_level(logging.WARNING):
        assert resolve(config_of(tmp_path)).model.num_classes == 3
    assert "from 1 (ant) to " in caplog.text
    config = folder.get_config()
    config.data.source = "digits"
    with pytest.raises(rj.UsageError, match=r"model\.name, .* unset; .* data\.source=folder"):
        build(config)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        *((name, {}, r"set --config\.data\.data_dir") for name in ("train", "import", "bench")),
        ("bench_data", {}, r"set --config\.data\.data_dir"),
        (
            "prepare",
            {"data.source": "tfds"},
            r"are unset; only data\.source=folder can do",
        ),
    ],
)
def test_modes_refuse_a_config_with_unset_fields(name, fields, message, tmp_path):
    mode = MODES[name]
    values = {"workdir": tmp_path / "run", "weights": tmp_path / "weights.pth"}
    flags = {flag: values[flag] for flag in (*mode.needs, *mode.takes) if flag in values}
    config = folder.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(rj.UsageError, match=message):
        mode.run(config, **flags)


@pytest.mark.medium
def test_a_run_keeps_its_values_when_images_are_added(tmp_path, caplog):
    caplog.set_level(logging.INFO, "repvgg_jax")
    data, workdir = write_tree(tmp_path / "data", splits=("",), count=8), tmp_path / "run"
    net = {"model.depths": (1,), "model.widths": (4,), "model.strides": (2,)}
    config = config_of(data, **net, **{"train.steps": 2})
    train(config, workdir)
    assert "; data: image_size=10, " in caplog.text
    saved = json.loads((workdir / "config.json").read_text())
    assert all(value is not None for name, value in flat(saved) if name in REQUIRED)

    for i in range(40):
        write(data / "ant" / f"new{i}.png", encoded(noise(i, 40, 40)))
    assert resolve(config).data.image_size == 40
    config.train.deadline = 0.0
    with pytest.raises(Stopped, match="after the last step"):
        run_train(config, workdir)
    assert config_hash(resolve(config, workdir)) == config_hash(saved)
    elsewhere = evaluation_config(config_of(tmp_path, **net), workdir)
    assert (elsewhere.data.holdout, elsewhere.data.image_size) == (None, 10)
