"""Batches depend on (seed, step) only, and errors name the bad value or file."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repvgg_jax.data.augment.transforms import Transform
from repvgg_jax.data.pipeline import eval_batches, train_batches
from repvgg_jax.data.sources.base import ArraySource
from repvgg_jax.data.sources.load import load_into_memory, load_source
from repvgg_jax.errors import UsageError
from tests.support.batches import AUGMENTED, PLAIN, array_source, assert_same, joined, take
from tests.support.image_files import truncated_jpeg, write, write_tree
from tests.support.messages import one_line


@pytest.mark.parametrize("transform", [PLAIN, *AUGMENTED], ids=lambda t: t.augmentation)
def test_start_step_is_skipping_in_memory(transform):
    source = array_source(11)
    batches = take(train_batches(source, transform, 4, 7), 8)
    assert_same(batches[5:], take(train_batches(source, transform, 4, 7, start_step=5), 3))


@pytest.mark.parametrize("transform", AUGMENTED, ids=lambda t: t.augmentation)
def test_streamed_batches_depend_on_neither_start_nor_workers_nor_processes(folder, transform):
    batches = take(train_batches(folder, transform, 4, 7, workers=1), 6)
    assert_same(batches, take(train_batches(folder, transform, 4, 7, workers=4), 6))
    assert_same(batches, take(train_batches(folder, transform, 4, 7, workers=0), 6))
    assert_same(batches[3:], take(train_batches(folder, transform, 4, 7, start_step=3), 3))
    for count in (2, 4):
        parts = [
            take(train_batches(folder, transform, 4, 7, process_index=i, process_count=count), 6)
            for i in range(count)
        ]
        assert_same(batches, joined(parts))
        parts = [
            take(train_batches(folder, transform, 4, 7, 3, process_index=i, process_count=count), 3)
            for i in range(count)
        ]
        assert_same(batches[3:], joined(parts))
    others = take(train_batches(folder, transform, 4, 8), 6)
    assert any((a["image"] != b["image"]).any() for a, b in zip(batches, others, strict=True))


@pytest.mark.parametrize("transform", AUGMENTED, ids=lambda t: t.augmentation)
def test_streamed_and_in_memory_batches_are_equal(folder, transform):
    arrays = load_into_memory(folder)
    assert_same(
        take(train_batches(folder, transform, 4, 3), 5),
        take(train_batches(arrays, transform, 4, 3), 5),
    )
    assert_same(eval_batches(folder, transform, 4), eval_batches(arrays, transform, 4))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_hold_the_batches_of_one(count):
    source = array_source(11)
    processes = [{"process_index": i, "process_count": count} for i in range(count)]
    transform = AUGMENTED[0]
    assert_same(
        take(train_batches(source, transform, 8, 0), 4),
        joined([take(train_batches(source, transform, 8, 0, **p), 4) for p in processes]),
    )
    assert_same(
        list(eval_batches(source, transform, 8)),
        joined([list(eval_batches(source, transform, 8, **p)) for p in processes]),
    )


def test_an_epoch_of_training_holds_every_example_once(folder):
    for source in (array_source(12), folder):
        batches = take(train_batches(source, Transform("none", 8), 3, 0), len(source) // 3)
        images = np.concatenate([batch["image"] for batch in batches])
        assert len(np.unique(images.reshape(len(source), -1), axis=0)) == len(source)
        assert all((batch["mask"] == 1).all() for batch in batches)


@given(st.integers(1, 30), st.integers(1, 5), st.sampled_from([1, 2, 3]))
@settings(max_examples=40)
def test_evaluation_counts_every_example_once(count, local, processes):
    source = array_source(count)
    batch_size = local * processes
    parts = [
        list(eval_batches(source, PLAIN, batch_size, process_index=i, process_count=processes))
        for i in range(processes)
    ]
    batches = joined(parts)
    assert len(batches) == -(-count // batch_size)
    assert {len(batch["label"]) for batch in batches} == {batch_size}
    mask = np.concatenate([batch["mask"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    assert mask.sum() == count
    np.testing.assert_array_equal(images[mask == 1], source.images)
    np.testing.assert_array_equal(labels[mask == 1], source.labels)
    assert not images[mask == 0].any()


@given(st.integers(60, 9000), st.sampled_from([1, 2, 3, 7, 16]))
@settings(max_examples=15)
def test_fifty_thousand_images_are_fifty_thousand(local, processes):
    """Holds for every batch size and number of processes; devices only split local batches."""
    count = 50_000
    order = np.arange(count, dtype=np.int32)
    source = ArraySource("all", ("x",), np.zeros((count, 1, 1, 3), np.uint8), order)
    seen = []
    for index in range(processes):
        process = {"process_index": index, "process_count": processes}
        for batch in eval_batches(source, Transform("none", 1), local * processes, **process):
            seen.append(batch["label"][batch["mask"] > 0])
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), order)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 9])
def test_streamed_evaluation_counts_every_example_once(folder, batch_size):
    batches = list(eval_batches(folder, PLAIN, batch_size, workers=2))
    labels, mask = (np.concatenate([batch[key] for batch in batches]) for key in ("label", "mask"))
    assert labels[mask == 1].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 5, "process_count": 2}, "batch_size=5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 4, "process_count": 2, "process_index": 2}, "process_index=2"),
        ({"batch_size": 4, "workers": -1}, "workers=-1"),
    ],
)
def test_bad_batch_arguments_raise_before_the_first_batch(arguments, message):
    source = array_source(4)
    with pytest.raises(UsageError, match=message):
        train_batches(source, PLAIN, seed=0, **arguments)
    with pytest.raises(UsageError, match=message):
        eval_batches(source, PLAIN, **arguments)


@pytest.mark.parametrize("workers", [0, 3])
def test_a_broken_image_is_named_by_every_route(tmp_path, workers):
    write_tree(tmp_path)
    broken = write(tmp_path / "train" / "ant" / "broken.jpg", truncated_jpeg())
    source = load_source("folder", "x", os.fspath(tmp_path), "train")
    for transform in (PLAIN, *AUGMENTED):
        for batches in (
            train_batches(source, transform, 4, 0, workers=workers),
            eval_batches(source, transform, 4, workers=workers),
        ):
            with pytest.raises(UsageError) as error:
                take(batches, 4)
            one_line(error, broken, "truncated", "data.skip_corrupt")


def test_skipping_replaces_in_training_and_masks_in_evaluation(tmp_path, caplog):
    write_tree(tmp_path)
    broken = write(tmp_path / "train" / "ant" / "1.PNG", b"no image")
    source = load_source("folder", "x", os.fspath(tmp_path), "train", skip_corrupt=True)
    with caplog.at_level(logging.WARNING):
        training = take(train_batches(source, PLAIN, 6, 0), 3)
        evaluation = list(eval_batches(source, PLAIN, 4))
    assert source.skipped == {os.fspath(broken)}
    assert caplog.text.count(os.fspath(broken)) == 1
    successor = next(b for b in eval_batches(source, PLAIN, 1) if b["mask"][0])  # index 0
    for batch in training:
        assert batch["mask"].sum() == 6
        assert len(np.unique(batch["image"].reshape(6, -1), axis=0)) == 5
        assert sorted(batch["label"]) == [0, 0, 0, 1, 1, 1]
    assert successor["label"] == 0
    mask = np.concatenate([batch["mask"] for batch in evaluation])
    assert mask.tolist() == [1, 0, 1, 1, 1, 1, 0, 0]
    assert not evaluation[0]["image"][1].any()


def test_nothing_but_broken_images_ends_with_an_error(tmp_path):
    write(tmp_path / "ant" / "x.png", b"no image")
    source = load_source("folder", "x", os.fspath(tmp_path), "train", skip_corrupt=True)
    with pytest.raises(UsageError, match="none of 1 images"):
        next(train_batches(source, PLAIN, 1, 0))
