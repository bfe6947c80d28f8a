"""Images held out for evaluation: the same everywhere, and after others were added."""

from __future__ import annotations

import os
import unicodedata

import pytest

from repvgg_jax.data.sources.holdout import held_out
from repvgg_jax.data.sources.load import load_source
from repvgg_jax.errors import UsageError
from tests.support.image_files import encoded, noise, write, write_tree
from tests.support.messages import one_line


def names(count, root="/data"):
    return [f"{root}/ant/{i}.jpg" for i in range(count)]


def load(root, split, **options):
    return load_source("folder", "x", os.fspath(root), split, **options)


def paths(source):
    return {record.where for record in source.read(range(len(source)))}


def test_the_choice_depends_only_on_names_below_the_root():
    chosen = {os.path.basename(path) for path in held_out(names(12), "/data", 0.2)}
    assert chosen == {os.path.basename(p) for p in held_out(names(12, "/x/y"), "/x/y", 0.2)}
    assert chosen == {"6.jpg", "7.jpg"}  # as on any machine


def test_images_keep_their_side_when_others_are_added_or_the_share_grows():
    before, after = (held_out(names(count), "/data", 0.2) for count in (300, 500))
    assert before == after & set(names(300))
    assert 70 < len(after) < 130
    assert after < held_out(names(500), "/data", 0.3)


def test_every_class_is_trained_on_and_evaluated_if_it_has_two_images():
    for share in (1e-9, 0.5, 1 - 1e-9):
        assert [len(held_out(names(count), "/data", share)) for count in (1, 2)] == [0, 1]


def test_accents_are_the_same_however_a_file_system_encodes_them():
    composed = [f"/data/café/{i}é.jpg" for i in range(50)]
    decomposed = [unicodedata.normalize("NFD", name) for name in composed]
    chosen = held_out(decomposed, unicodedata.normalize("NFD", "/data"), 0.3)
    assert {unicodedata.normalize("NFC", name) for name in chosen} == held_out(
        composed, "/data", 0.3
    )


@pytest.mark.parametrize("splits", [("",), ("train",)])
def test_one_folder_is_split_without_overlap(tmp_path, splits, caplog):
    write_tree(tmp_path, splits=splits, count=8)
    train, test = (load(tmp_path, split, holdout=0.25) for split in ("train", "test"))
    (line,) = caplog.messages
    assert line.startswith(f"{train.name}: classes with fewer than 5 evaluation images: ")
    assert f": ant {[test[i].label for i in range(len(test))].count(0)}, bee " in line
    assert not paths(train) & paths(test)
    assert paths(train) | paths(test) == paths(load(tmp_path, "train"))
    assert train.class_names == test.class_names == ("ant", "bee")
    assert {test[i].label for i in range(len(test))} == {0, 1}


def test_a_share_that_has_no_use_is_refused(tmp_path):
    write_tree(tmp_path)
    with pytest.raises(UsageError) as error:
        load(tmp_path, "train", holdout=0.2)
    one_line(error, "data.holdout=0.2", tmp_path / "val")
    with pytest.raises(UsageError, match=r"data\.holdout=0\.2 .* data\.source=folder"):
        load_source("digits", "digits", None, "train", holdout=0.2)
    for name in ("ant", "bee"):
        write(tmp_path / "single" / name / "0.png", encoded(noise(0)))
    with pytest.raises(UsageError) as error:
        load(tmp_path / "single", "test", holdout=0.2)
    one_line(error, tmp_path / "single", "single image")
