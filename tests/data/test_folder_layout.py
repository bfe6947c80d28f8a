"""The folders of the splits and of the classes, and refusals of other layouts."""

from __future__ import annotations

import logging
import os

import pytest

from repvgg_jax.data.sources.load import load_source
from repvgg_jax.errors import UsageError
from tests.support.image_files import write, write_tree
from tests.support.messages import one_line


def load(root, split="train"):
    return load_source("folder", "x", os.fspath(root), split)


@pytest.mark.parametrize(
    ("splits", "train", "evaluated"),
    [
        (("train", "valid", "test"), "train", "valid"),
        (("train", "test", "dev"), "train", "dev"),
        (("train", "validation", "valid", "val", "dev"), "train", "val"),
        (("Training", "Testing"), "Training", "Testing"),
        (("Train", "Test", "Val"), "Train", "Val"),
    ],
)
def test_a_validation_folder_is_evaluated_before_test(tmp_path, caplog, splits, train, evaluated):
    caplog.set_level(logging.INFO)
    write_tree(tmp_path, splits=splits)
    assert load(tmp_path).name == os.fspath(tmp_path / train)
    assert not caplog.messages
    assert load(tmp_path, "test").name == os.fspath(tmp_path / evaluated)
    unused = [os.fspath(tmp_path / s) for s in splits if s not in (train, evaluated)]
    assert len(caplog.messages) == bool(unused)
    for line in caplog.messages:
        assert f"evaluation uses {tmp_path / evaluated}" in line
        assert all(folder in line for folder in unused)


def test_a_data_dir_one_level_too_high_is_refused(tmp_path):
    write_tree(tmp_path / "flowers")
    with pytest.raises(UsageError) as error:
        load(tmp_path)
    one_line(error, "data.data_dir", tmp_path / "flowers")


@pytest.mark.parametrize("within", ["", "Images"])
def test_the_folder_around_an_archives_class_folders_is_refused(tmp_path, within):
    inner = write_tree(tmp_path / "flowers" / within, splits=("",))
    write(tmp_path / "flowers" / "README.txt", b"")
    with pytest.raises(UsageError, match=rf"one class folder, flowers, .*data_dir={inner}$"):
        load(tmp_path)
    assert load(inner).class_names == ("ant", "bee")


def test_classes_whose_images_are_all_in_subfolders_are_a_warning(tmp_path, caplog):
    write_tree(tmp_path, splits=("day", "night"))
    assert load(tmp_path).class_names == ("day", "night")
    (record,) = [record for record in caplog.records if "subfolders" in record.message]
    assert record.levelno == logging.WARNING
    assert "the classes are its folders, day, night, but all 12 images" in record.message
    assert f"set --config.data.data_dir={tmp_path / 'day'}, or gather" in record.message


def test_a_data_dir_one_level_too_low_or_misspelled_is_refused(tmp_path):
    data = write_tree(tmp_path / "flowers", splits=("",))
    with pytest.raises(UsageError, match=f"folder of a class, set data.data_dir={data}$"):
        load(next(folder for folder in data.iterdir()))
    with pytest.raises(UsageError, match=r"flower does not exist; did you mean .*flowers\?"):
        load(tmp_path / "flower")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_dangling_link_to_a_class_folder_is_refused(tmp_path, split):
    write_tree(tmp_path)
    link = tmp_path / ("val" if split == "test" else "train") / "cow"
    link.symlink_to(tmp_path / "unmounted")
    with pytest.raises(UsageError) as error:
        load(tmp_path, split)
    one_line(error, link, tmp_path / "unmounted")
