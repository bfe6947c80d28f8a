"""Class folders as people have them: subfolders, other files, links."""

from __future__ import annotations

import logging
import os
from collections import Counter

import numpy as np
import pytest

from repvgg_jax.data.pipeline import eval_batches, train_batches
from repvgg_jax.data.sources.listing import list_images, scan
from repvgg_jax.data.sources.load import load_source
from repvgg_jax.errors import UsageError
from tests.support.batches import PLAIN, take
from tests.support.image_files import encoded, noise, write, write_tree
from tests.support.messages import one_line


def load(root, split="train", **options):
    return load_source("folder", "x", os.fspath(root), split, **options)


def paths(source):
    return [record.where for record in source.read(range(len(source)))]


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "BMP", "PPM"])
def test_images_of_every_suffix_are_read(tmp_path, log, kind):
    for i, name in enumerate(("ant", "bee")):
        write(tmp_path / "train" / name / "0.jpg", encoded(noise(0), "JPEG"))
        suffix = {"TIFF": "tif"}.get(kind, kind)
        file = write(tmp_path / "train" / name / f"1.{suffix}", encoded(noise(i), kind))
        assert os.fspath(file) in paths(load(tmp_path))
    assert [load(tmp_path)[i].label for i in range(4)] == [0, 0, 1, 1]
    assert not log.messages


def test_images_in_subfolders_belong_to_the_class(tmp_path, log):
    write_tree(tmp_path, splits=("train",))
    nested = write(tmp_path / "train" / "ant" / "day" / "1" / "x.png", encoded(noise(9)))
    write(tmp_path / "train" / "ant" / ".ipynb_checkpoints" / "0.PNG", encoded(noise(9)))
    source = load(tmp_path)
    assert source.class_names == ("ant", "bee")
    assert paths(source)[:4] == [*paths(source)[:3], os.fspath(nested)]
    assert [source[i].label for i in range(len(source))] == [0] * 4 + [1] * 3
    assert log.messages == [
        f"{tmp_path / 'train'}: 1 of 7 images are in subfolders of class folders"
    ]


def test_what_is_left_out_is_said_with_its_count(tmp_path, log):
    write_tree(tmp_path, splits=("train",))
    for name in ("ant/0.heic", "ant/more/1.HEIC", "bee/notes.txt", "bee/README", "labels.csv"):
        write(tmp_path / "train" / name, b"")
    write(tmp_path / "train" / "0.png", encoded(noise(0)))
    (tmp_path / "train" / "bee" / "lost").symlink_to(tmp_path / "nothing")
    write(tmp_path / "train" / "bee" / "._0.PNG", b"")
    assert len(load(tmp_path)) == 6
    assert log.messages == [
        f"{tmp_path / 'train'}: left out 2 .heic, 1 .csv beside the class folders, 1 .png beside "
        "the class folders, 1 .txt, 1 dangling link, 1 without a suffix"
    ]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path, log):
    write_tree(tmp_path, splits=("train",))
    write(tmp_path / "elsewhere" / "x.png", encoded(noise(9)))
    (tmp_path / "train" / "cow").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "bee" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "bee" / "again").symlink_to(tmp_path / "train" / "bee")
    (tmp_path / "train" / "bee" / "self").symlink_to(tmp_path / "train" / "bee" / "self")
    source = load(tmp_path)
    assert source.class_names == ("ant", "bee", "cow")
    assert len(source) == 3 + 4 + 1
    assert "left out 1 dangling link, 1 link to a folder above it" in log.messages[-1]


def test_a_dangling_link_to_an_image_is_a_corrupt_image(tmp_path):
    write_tree(tmp_path, splits=("train",))
    link = tmp_path / "train" / "ant" / "9.jpg"
    link.symlink_to(tmp_path / "lost.jpg")
    with pytest.raises(UsageError) as error:
        list(eval_batches(load(tmp_path), PLAIN, 7))
    one_line(error, f"{link}: a link to {tmp_path}/lost.jpg, which does not exist; replace or del")
    source = load(tmp_path, skip_corrupt=True)
    (evaluation,) = eval_batches(source, PLAIN, 7)
    assert evaluation["mask"].tolist() == [1, 1, 1, 0, 1, 1, 1]
    for batch in take(train_batches(source, PLAIN, 7, 0), 2):
        assert batch["mask"].all()
    assert len(source.skipped) == 1


def test_a_file_that_cannot_be_read_is_named_even_if_corrupt_ones_are_skipped(tmp_path):
    write_tree(tmp_path, splits=("train",))
    source = load(tmp_path, skip_corrupt=True)
    lost = tmp_path / "train" / "ant" / "0.PNG"
    lost.unlink()
    with pytest.raises(UsageError) as error:
        next(eval_batches(source, PLAIN, 6))
    one_line(error, lost, "No such file")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    for function in (scan, lambda folder: list_images(folder, Counter())):
        with pytest.raises(UsageError) as error:
            function(os.fspath(tmp_path / "gone"))
        one_line(error, tmp_path / "gone", "No such file")


def test_the_order_does_not_depend_on_the_file_system(tmp_path):
    for root, order in ((tmp_path / "a", range(20)), (tmp_path / "b", range(19, -1, -1))):
        for i in order:
            folder = root / "train" / f"c{i % 3}"
            write((folder / "sub" if i % 2 else folder) / f"{i}.png", encoded(noise(i)))
    first, second = load(tmp_path / "a"), load(tmp_path / "b")
    assert first.class_names == second.class_names == ("c0", "c1", "c2")
    for i in range(20):
        np.testing.assert_array_equal(first[i].image, second[i].image)
