"""A run keeps the names of its classes, and data of other classes are refused."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.cli import evaluate, fuse
from repvgg_jax.cli.train import run_train
from repvgg_jax.config.build import build, make_source
from repvgg_jax.config.classes import check_classes, write_class_names
from repvgg_jax.training.transfer import transfer
from tests.support.image_files import write_tree
from tests.support.runs import tiny_config
from tests.support.variables import random_variables

THOUSAND = tuple(f"n{index:08}" for index in range(1000))


@pytest.mark.parametrize(
    ("here", "difference"),
    [
        (("ape", "cat", "dog"), "output 0 is 'ape' in the data and 'cat' in the run"),
        (("cat", "dog", "elk"), "output 2 is 'elk' in the data and nothing in the run"),
        (("cat",), "output 1 is nothing in the data and 'dog' in the run"),
        (("dog", "cat"), "output 0 is 'dog' in the data and 'cat' in the run"),
    ],
)
def test_a_difference_is_refused_with_both_lists(here, difference, tmp_path):
    write_class_names(tmp_path, ("cat", "dog"))
    check_classes(tmp_path, ("cat", "dog"), "pets")
    with pytest.raises(rj.UsageError) as caught:
        check_classes(tmp_path, here, "pets")
    message = str(caught.value)
    assert f"pets has {len(here)} classes [{', '.join(here)}]" in message
    assert "was trained on 2 classes [cat, dog]" in message
    assert difference in message
    assert message.endswith("; use data with the classes of the run")
    with pytest.raises(rj.UsageError, match=r"--config\.init_from="):
        check_classes(tmp_path, here, "pets", to_train=True)
    assert "\n" not in message


def test_long_lists_are_shortened_and_unknown_names_pass(tmp_path):
    check_classes(tmp_path, THOUSAND, "images")
    assert rj.class_names(tmp_path) is None
    write_class_names(tmp_path, THOUSAND)
    assert rj.class_names(tmp_path) == THOUSAND
    with pytest.raises(rj.UsageError, match="and 990 more") as caught:
        check_classes(tmp_path, (*THOUSAND[:500], "cat", *THOUSAND[501:]), "images")
    assert "output 500 is 'cat'" in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_missing_or_damaged_list_is_named(tmp_path):
    with pytest.raises(rj.UsageError, match="no run in"):
        rj.class_names(tmp_path / "missing")
    (tmp_path / "classes.json").write_text("[")
    with pytest.raises(rj.UsageError, match=r"classes\.json cannot be read"):
        rj.class_names(tmp_path)


def test_heads_of_other_classes_stay_fresh():
    fields = {"num_classes": 5, "depths": (1, 2), "widths": (4, 8), "strides": (1, 2)}
    net = rj.create("repvgg_a0", **fields)
    source, fresh = random_variables(net, 1, 8), random_variables(net, 2, 8)
    kept, reinitialized = transfer(fresh, source)
    assert reinitialized == []
    jax.tree.map(np.testing.assert_array_equal, kept["params"]["head"], source["params"]["head"])
    started, reinitialized = transfer(fresh, source, keep_heads=False)
    assert reinitialized == ["head"]
    jax.tree.map(np.testing.assert_array_equal, started["params"]["head"], fresh["params"]["head"])
    block = "stage1_block0"
    jax.tree.map(np.testing.assert_array_equal, started["params"][block], source["params"][block])


def test_more_classes_than_outputs_are_refused_before_training(tmp_path):
    write_tree(tmp_path)
    config = tiny_config(data_source="folder", data_data_dir=str(tmp_path))
    config.model.num_classes = 1
    with pytest.raises(
        rj.UsageError,
        match=r"has 2 classes \[ant, bee\], but the net has 1 outputs; set model\.num_classes=2",
    ):
        build(config)


def test_more_outputs_than_classes_are_said_once(tmp_path, caplog):
    config = tiny_config(data_source="folder", data_data_dir=str(write_tree(tmp_path)))
    for split in ("train", "test"):
        make_source(config, split)
    [message] = caplog.messages
    assert "train has 2 classes, but the net has 10 outputs" in message


@pytest.mark.medium
def test_a_run_meets_data_of_its_own_classes_only(tmp_path, caplog, capsys):
    data, workdir = tmp_path / "data", tmp_path / "run"
    write_tree(data, classes=("cat", "dog"), count=8)
    config = tiny_config(
        data_source="folder", data_data_dir=str(data), train_steps=2, train_batch_size=8
    )
    config.train.eval_batch_size = 8
    config.model.num_classes = 2
    run_train(config, workdir)
    assert rj.class_names(workdir) == ("cat", "dog")
    report = (workdir / "report.json").read_text()
    assert json.loads(report)["classes"] == ["cat", "dog"]
    evaluate.run_eval(None, workdir)
    printed = capsys.readouterr().out
    assert "top-1" in printed
    assert "top-5" not in printed  # of two classes

    write_tree(data, classes=("ape",))
    for command in (
        lambda: evaluate.run_eval(None, workdir),
        lambda: fuse.run_fuse(None, workdir),
        lambda: build(config, run=workdir),
        lambda: run_train(config, workdir),  # finished
    ):
        with pytest.raises(rj.UsageError, match="output 0 is 'ape' in the data and 'cat'"):
            command()
    assert (workdir / "report.json").read_text() == report
    shutil.rmtree(data / "train/ape")
    shutil.rmtree(data / "val/ape")
    for split in ("train", "val"):
        (data / split / "cat").rename(data / split / "zcat")
    with pytest.raises(rj.UsageError, match="output 0 is 'dog' in the data and 'cat'"):
        evaluate.run_eval(None, workdir)

    config.init_from = str(workdir)  # as many classes, but other ones
    both = r"has 2 classes \[cat, dog\], and this one 2 classes \[dog, zcat\]; set init_head=reset"
    with pytest.raises(rj.UsageError, match=both):
        run_train(config, tmp_path / "next")
    assert not (tmp_path / "next/checkpoints").exists()
    config.init_head = "reset"
    with caplog.at_level(logging.INFO):
        run_train(config, tmp_path / "next")
    assert "freshly initialized: head" in caplog.text
    assert rj.class_names(tmp_path / "next") == ("dog", "zcat")


def test_fields_that_the_digits_do_not_have_are_named(caplog):
    make_source(tiny_config(data_name="cifar10", data_data_dir="/data"), "train")
    for field in ("data.name=cifar10", "data.data_dir=/data"):
        assert f"{field} has no effect with data.source=digits" in caplog.messages
    caplog.clear()
    make_source(tiny_config(), "train")
    assert not caplog.messages
