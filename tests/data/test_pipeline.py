"""The data package: what a batch holds depends on (seed, step) only, and mistakes are named."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from repvgg_jax.data.augment.pad_crop import pad_crop_flip
from repvgg_jax.data.augment.transforms import (
    Transform,
    random_box,
    resize_and_crop,
    resized_crop,
    train_image,
)
from repvgg_jax.data.decode.image import from_array, open_image
from repvgg_jax.data.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from repvgg_jax.data.pipeline import eval_batches, train_batches
from repvgg_jax.data.sampler import example_rng, stream_indices
from repvgg_jax.data.sources import load as load_module
from repvgg_jax.data.sources.base import ArraySource, Source
from repvgg_jax.data.sources.load import load_source
from repvgg_jax.data.sources.memory import in_memory
from repvgg_jax.errors import UsageError
from tests.support.batches import array_source, assert_same, joined, take

PLAIN = Transform("none", 8)
AUGMENTED = [Transform("pad_crop", 8, padding=2), Transform("resized_crop", 8, resize=10)]

# --- Trees and sets written here ------------------------------------------------------------------


def noise(seed, height=12, width=10):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels, kind="PNG"):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_tree(root, splits=("train", "val"), classes=("bee", "ant"), count=3):
    """Class folders of noise; every image differs from every other."""
    seeds = itertools.count()
    for split in splits:
        for name in classes:
            for i in range(count):
                write(root / split / name / f"{i}.PNG", encoded(noise(next(seeds))))
    return root


def truncated_jpeg():
    data = encoded(noise(0, 64, 64), "JPEG")
    return data[: len(data) // 2]


def write_prepared(root, images, labels, *, shape=(8, 8, 3), label=None, splits=("train",)):
    """A prepared array_record data set `tiny`, written without TensorFlow."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=shape)}
    features["label"] = label or tfds.features.ClassLabel(num_classes=3)

    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            """Images given as bytes."""

            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples() for split in splits}

            def _generate_examples(self):
                for i, (image, value) in enumerate(zip(images, labels, strict=True)):
                    yield i, {"image": image, "label": value}

    Tiny(data_dir=root, file_format="array_record").download_and_prepare()
    return root / "tiny" / "1.0.0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return load_source(
        "folder", "noise", os.fspath(write_tree(tmp_path_factory.mktemp("tree"))), "train"
    )


@pytest.fixture(scope="module")
def real_data():
    beside = pathlib.Path(__file__).resolve().parents[3] / "shared"
    root = pathlib.Path(os.environ.get("REPVGG_JAX_TEST_DATA", beside))
    if not (root / "tensorflow_datasets").is_dir():
        pytest.skip(f"no real data in {root}; set REPVGG_JAX_TEST_DATA to where it is")
    return root


# --- The stream -----------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 2**70), st.integers(0, 100), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_every_epoch_is_a_permutation_wherever_the_stream_is_cut(size, seed, start, count):
    stream = stream_indices(size, seed, 0, start + count)
    np.testing.assert_array_equal(stream[start:], stream_indices(size, seed, start, count))
    for epoch in range((start + count) // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_shuffle_differently():
    size = 100
    orders = [stream_indices(size, seed, e * size, size) for seed in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    draws = {example_rng(seed, position).random() for seed in (0, 1) for position in range(50)}
    assert len(draws) == 100
    # Order and augmentation are independent although both count from 0.
    assert (example_rng(0, 0).permutation(size) != orders[0]).any()


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
    arrays = in_memory(folder)
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
@settings(max_examples=40, deadline=None)
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
@settings(max_examples=15, deadline=None)
def test_fifty_thousand_images_are_fifty_thousand(local, processes):
    """For every batch size and number of processes; devices only cut what a process has."""
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


# --- Transforms -----------------------------------------------------------------------------------


@given(st.integers(20, 900), st.integers(20, 900), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_random_box_keeps_its_area_and_ratio(width, height, seed):
    left, top, right, bottom = random_box(np.random.default_rng(seed), width, height)
    w, h = right - left, bottom - top
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    # Sides are whole pixels: half a pixel of slack on each.
    assert (w - 0.5) / (h + 0.5) <= 4 / 3
    assert (w + 0.5) / (h - 0.5) >= 3 / 4
    if 3 / 4 <= width / height <= 4 / 3:  # where the fallback, too, keeps the area
        assert 0.08 * width * height <= (w + 0.5) * (h + 0.5)


def test_random_box_spreads_over_areas_and_ratios():
    boxes = [random_box(example_rng(0, i), 500, 500) for i in range(2000)]
    sides = np.array([(r - l, b - t) for l, t, r, b in boxes])  # noqa: E741
    share, ratio = sides.prod(1) / 500**2, sides[:, 0] / sides[:, 1]
    assert share.min() < 0.1
    assert share.max() > 0.95
    assert abs(np.log(ratio).mean()) < 0.02
    # Large shares fit less often, so the mean lies a little below the middle of (0.08, 1).
    assert 0.45 < share.mean() < 0.54


@pytest.mark.parametrize("height", [20, 400])
def test_a_box_that_never_fits_falls_back_to_the_centre(height):
    box = random_box(example_rng(0, 0), 420 - height, height, ratio=(0.9, 1.1))
    assert box[0] + box[2] == pytest.approx(420 - height, abs=1)
    assert box[1] + box[3] == pytest.approx(height, abs=1)


def test_resized_crop_is_the_crop_resized():
    pixels = noise(0, 50, 40)
    crop = resized_crop(from_array(pixels), (5, 10, 35, 40), 30)
    np.testing.assert_array_equal(crop, pixels[10:40, 5:35])


@pytest.mark.parametrize(
    ("grain", "box"),
    [(100, (101, 53, 1101, 953)), (10, (101, 53, 251, 203))],
    ids=["most of it", "a detail"],
)
def test_a_jpeg_decoded_at_reduced_size_gives_nearly_the_same_crop(grain, box):
    smooth = Image.fromarray(noise(1, 1000 // grain, 1200 // grain)).resize((1200, 1000))
    data = encoded(np.asarray(smooth), "JPEG")
    fast = resized_crop(open_image(data, "a"), box, 100)
    full = resized_crop(from_array(np.asarray(Image.open(io.BytesIO(data)))), box, 100)
    assert np.abs(fast.astype(int) - full).mean() < 1
    assert np.abs(fast.astype(int) - full).max() < 12


@pytest.mark.parametrize("transform", AUGMENTED, ids=lambda t: t.augmentation)
def test_half_of_the_images_are_mirrored(transform):
    ramp = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None] * 30, (8, 8, 3))
    images = np.stack([train_image(from_array(ramp), transform, 0, p) for p in range(600)])
    inner = images[:, 2:-2, 2:-2, 0].astype(int)
    falling = (inner[:, 0, -1] < inner[:, 0, 0]).mean()
    assert 0.44 < falling < 0.56


@given(st.integers(0, 4), st.integers(0, 2**64), st.booleans())
@settings(max_examples=30, deadline=None)
def test_pad_crop_flip_is_a_window_of_the_padded_image(padding, seed, flip):
    images = array_source(6, size=5).images
    positions = np.arange(6) + seed % 1000
    result = pad_crop_flip(images, padding, flip, seed, positions)
    assert result.dtype == np.uint8
    for image, crop, position in zip(images, result, positions, strict=True):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        windows = [
            window[:, ::step]
            for y in range(2 * padding + 1)
            for x in range(2 * padding + 1)
            for window in [padded[y : y + 5, x : x + 5]]
            for step in ((1, -1) if flip else (1,))
        ]
        assert any(np.array_equal(crop, window) for window in windows)
        alone = pad_crop_flip(image[None], padding, flip, seed, np.array([position]))
        np.testing.assert_array_equal(alone[0], crop)


def test_pad_crop_reaches_every_offset_evenly():
    dot = np.zeros((1, 9, 9, 3), np.uint8)
    dot[:, 4, 4] = 1
    count = 5000
    moved = pad_crop_flip(np.repeat(dot, count, 0), 2, False, 0, np.arange(count))
    spread = moved[..., 0].mean(0)[2:7, 2:7]
    assert spread.sum() == pytest.approx(1)
    assert spread.min() > 0.6 / 25
    assert spread.max() < 1.4 / 25


@pytest.mark.parametrize("shape", [(70, 100), (100, 70), (64, 64), (33, 150), (301, 299)])
def test_evaluation_is_resize_then_centre_crop(shape):
    pixels = noise(2, *shape)
    image, (height, width) = Image.fromarray(pixels), shape
    size = (int(64 * width / height), 64) if height < width else (64, int(64 * height / width))
    expected = image.resize(size, Image.Resampling.BILINEAR)
    left, top = int(round((size[0] - 56) / 2)), int(round((size[1] - 56) / 2))  # noqa: RUF046
    expected = expected.crop((left, top, left + 56, top + 56))
    np.testing.assert_array_equal(resize_and_crop(pixels, 64, 56), np.asarray(expected))


def test_normalize():
    images = array_source(2).images
    expected = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    result = normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "LA", "RGBA", "1", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    grey = np.repeat(np.linspace(0, 255, 16).astype(np.uint8)[None], 16, 0)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / f"x.{kind.lower()}")
    source = load_source("folder", "modes", os.fspath(tmp_path), "test")
    pixels = source[0].image
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert pixels[:, 0].mean() < 10
    assert pixels[:, -1].mean() > 245
    if mode not in ("1", "P"):
        np.testing.assert_allclose(pixels.astype(int), grey[..., None].repeat(3, 2), atol=6)


# --- Sources --------------------------------------------------------------------------------------


def test_digits():
    train, test = (load_source("digits", "digits", None, split) for split in ("train", "test"))
    assert isinstance(train, Source)
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    assert train.images.shape[1:] == (8, 8, 3)
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert set(test.labels) == set(range(10))
    batch = next(train_batches(train, Transform("pad_crop", 8, padding=1, flip=False), 16, 0))
    assert batch["image"].shape == (16, 8, 8, 3)
    larger = next(eval_batches(test, Transform("none", 12), 16))
    assert larger["image"].shape == (16, 12, 12, 3)


def test_folder_labels_are_ranks_of_sorted_names(folder):
    assert isinstance(folder, Source)
    assert folder.class_names == ("ant", "bee")
    assert [folder[i].label for i in range(len(folder))] == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(folder[0].image, noise(3))  # bee was written first


def test_a_folder_without_splits_serves_both_and_says_so(tmp_path, caplog):
    write_tree(tmp_path, splits=("",))
    with caplog.at_level(logging.WARNING):
        sources = [load_source("folder", "x", os.fspath(tmp_path), s) for s in ("train", "test")]
    assert [len(source) for source in sources] == [6, 6]
    assert "the same images" in caplog.text


def test_val_is_preferred_to_test_which_may_hold_images_without_classes(tmp_path):
    write_tree(tmp_path)
    write(tmp_path / "test" / "0.png", encoded(noise(0)))  # ImageNet as Kaggle packs it
    for split, folder in (("train", "train"), ("test", "val")):
        source = load_source("folder", "x", os.fspath(tmp_path), split)
        assert source.name.endswith(os.fspath(tmp_path / folder))
        assert len(source) == 6


def test_prepared_set_of_one_size_is_in_memory(tmp_path):
    images = [noise(i, 8, 8) for i in range(7)]
    labels = [i % 3 for i in range(7)]
    write_prepared(tmp_path, [encoded(x) for x in images], labels, splits=("train", "validation"))
    source = load_source("tfds", "tiny", os.fspath(tmp_path), "test")
    assert isinstance(source, ArraySource)
    assert "validation" in source.name
    assert source.class_names == ("0", "1", "2")
    by_content = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    read = {image.tobytes(): int(y) for image, y in zip(source.images, source.labels, strict=True)}
    assert read == by_content


def test_prepared_set_of_many_sizes_streams_and_takes_the_newest_version(tmp_path, monkeypatch):
    images = [noise(i, 8 + i, 9) for i in range(5)]
    made = write_prepared(
        tmp_path, [encoded(x) for x in images], [0, 1, 2, 0, 1], shape=(None, None, 3)
    )
    shutil.copytree(made, made.with_name("0.9.0"))
    made.rename(made.with_name("0.10.0"))
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path))
    source = load_source("tfds", "tiny", None, "train")
    assert "0.10.0" in source.name
    assert "0.9.0" in load_source("tfds", "tiny:0.9.0", None, "train").name
    sizes = {source[i].image.shape for i in range(len(source))}
    assert sizes == {image.shape for image in images}
    batches = take(train_batches(source, AUGMENTED[1], 5, 0, workers=2), 2)
    assert sorted(batches[0]["label"]) == sorted(batches[1]["label"]) == [0, 0, 1, 1, 2]
    with pytest.raises(UsageError, match=r"no version 2\.0\.0, only 0\.9\.0, 0\.10\.0"):
        load_source("tfds", "tiny:2.0.0", None, "train")


def test_array_record_beside_another_format_is_read(tmp_path):
    made = write_prepared(tmp_path, [encoded(noise(i, 8, 8)) for i in range(3)], [0, 1, 2])
    info = made / "dataset_info.json"
    formats = {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    info.write_text(json.dumps(json.loads(info.read_text()) | formats))
    source = load_source("tfds", "tiny", os.fspath(tmp_path), "train")
    assert sorted(source.labels) == [0, 1, 2]


def test_cifar10(real_data):
    source = load_source("tfds", "cifar10", os.fspath(real_data / "tensorflow_datasets"), "test")
    assert source.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(source.labels).tolist() == [1000] * 10
    assert source.class_names[3] == "cat"


def test_photographs(real_data):
    folder = os.fspath(real_data / "imagenet_samples")
    source = load_source("folder", "imagenet", folder, "train", num_classes=200)
    batch = next(train_batches(source, Transform("resized_crop", 224), 16, 0, workers=2))
    assert batch["image"].shape == (16, 224, 224, 3)
    # Photographs, not noise or padding: neighbours resemble each other, levels are spread.
    assert np.abs(np.diff(batch["image"].astype(int), axis=2)).mean() < 25
    assert (batch["image"].std((1, 2, 3)) > 5).all()


def test_evaluation_of_a_photograph_is_what_pillow_makes_of_it(real_data):
    root = real_data / "imagenet_samples"
    source = load_source("folder", "imagenet", os.fspath(root), "test")
    batch = next(eval_batches(source, Transform("resized_crop", 224), 4, workers=1))
    for row, folder in enumerate(sorted(root.iterdir())[:4]):
        image = Image.open(next(folder.iterdir())).convert("RGB")
        width, height = image.size
        scale = min(width, height)
        size = int(256 * width / scale), int(256 * height / scale)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
        expected = np.asarray(image.crop((left, top, left + 224, top + 224)))
        np.testing.assert_array_equal(batch["image"][row], expected)


def test_nothing_here_imports_tensorflow(tmp_path):
    write_prepared(tmp_path, [encoded(noise(0, 8, 8))], [1])
    code = (
        "import sys\n"
        "from repvgg_jax.data.augment.transforms import Transform\n"
        "from repvgg_jax.data.pipeline import train_batches\n"
        "from repvgg_jax.data.sources.load import load_source\n"
        "slow = {'grain', 'tensorflow_datasets', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "source = load_source('tfds', 'tiny', sys.argv[1], 'train')\n"
        "next(train_batches(source, Transform('pad_crop', 8), 1, 0))\n"
        "assert 'tensorflow' not in sys.modules\n"
        "assert not slow, slow\n"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- Mistakes -------------------------------------------------------------------------------------


def one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert os.fspath(part) in message
    return message


def fails(*parts, **arguments):
    keywords = {"source": "folder", "name": "x", "data_dir": None, "split": "train"} | arguments
    with pytest.raises(UsageError) as error:
        load_source(**keywords)
    return one_line(error, *parts)


def test_unknown_words():
    fails("'pickle'", "digits, tfds, folder", source="pickle")
    fails("'valid'", "train, test", split="valid")
    with pytest.raises(UsageError, match=r"'cutmix'.*resized_crop, pad_crop, none"):
        Transform("cutmix", 8)
    with pytest.raises(UsageError, match="resize=32 is less than image_size=64"):
        Transform("resized_crop", 64, resize=32)


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


def test_missing_folders_are_named(tmp_path):
    fails("data.data_dir")
    fails(tmp_path / "none", data_dir=os.fspath(tmp_path / "none"))
    fails("no class folder", tmp_path, data_dir=os.fspath(tmp_path))
    write_tree(tmp_path, splits=("train",))
    fails(tmp_path, "val, validation, test", data_dir=os.fspath(tmp_path), split="test")


def test_a_test_folder_alone_is_a_mistake(tmp_path):
    write_tree(tmp_path, splits=("val",))
    fails(tmp_path / "val", "no train folder", data_dir=os.fspath(tmp_path))


def test_an_empty_class_folder_is_named(tmp_path):
    write_tree(tmp_path)
    write(tmp_path / "train" / "cow" / "notes.txt", b"")
    (tmp_path / "val" / "cow").mkdir()
    fails(tmp_path / "train" / "cow", ".jpg", data_dir=os.fspath(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_different_classes_are_listed(tmp_path, split):
    write_tree(tmp_path)
    (tmp_path / "train" / "bee").rename(tmp_path / "train" / "wasp")
    fails("plus [bee]", "minus [wasp]", tmp_path / "val", data_dir=os.fspath(tmp_path), split=split)


def test_labels_beyond_the_net_are_named(tmp_path):
    write_tree(tmp_path)
    first = tmp_path / "train" / "bee" / "0.PNG"
    fails("label 1", first, "[0, 1)", data_dir=os.fspath(tmp_path), num_classes=1)
    fails("label 5", "[0, 5)", source="digits", num_classes=5)


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


@pytest.mark.parametrize("data", [b"", b"GIF?", encoded(noise(0))[:60], encoded(noise(0))[:-70]])
def test_other_ways_to_be_broken(tmp_path, data):
    broken = write(tmp_path / "ant" / "x.png", data)
    source = load_source("folder", "x", os.fspath(tmp_path), "train")
    with pytest.raises(UsageError) as error:
        source[0]
    one_line(error, broken)


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


def test_a_broken_record_is_named_or_left_out_of_memory(tmp_path):
    images = [encoded(noise(i, 8, 8)) for i in range(4)]
    made = write_prepared(tmp_path, [*images, images[0][:50]], [0, 1, 2, 0, 1])
    fails("record ", made, "cannot decode", source="tfds", name="tiny", data_dir=tmp_path)
    source = load_source("tfds", "tiny", os.fspath(tmp_path), "train", skip_corrupt=True)
    assert len(source) == 4
    assert len(source.skipped) == 1
    assert sorted(source.labels) == [0, 0, 1, 2]


def test_record_labels_beyond_the_net_are_named(tmp_path):
    images = [encoded(noise(i, 8, 8)) for i in range(3)]
    made = write_prepared(tmp_path, images, [0, 1, 2])
    where = {"source": "tfds", "name": "tiny", "data_dir": os.fspath(tmp_path)}
    fails("label 2", "record ", made, "[0, 2)", num_classes=2, **where)


def test_streamed_labels_beyond_the_net_surface_from_the_workers(tmp_path):
    images = [encoded(noise(i, 8, 8)) for i in range(3)]
    write_prepared(tmp_path, images, [0, 1, 2], shape=(None, None, 3))
    source = load_source("tfds", "tiny", os.fspath(tmp_path), "train", num_classes=2)
    with pytest.raises(UsageError) as error:
        list(eval_batches(source, PLAIN, 2, workers=2))
    one_line(error, "label 2", "record ", "[0, 2)")


def test_integer_labels_need_the_number_of_classes(tmp_path):
    import tensorflow_datasets as tfds

    scalar = tfds.features.Scalar(np.int64)
    write_prepared(tmp_path, [encoded(noise(0, 8, 8))] * 2, [1, -1], label=scalar)
    where = {"source": "tfds", "name": "tiny", "data_dir": os.fspath(tmp_path)}
    fails("'label'", "ClassLabel", "Scalar", **where)
    fails("label -1", "[0, 2)", num_classes=2, **where)


def test_missing_sets_come_with_the_command_that_prepares_them(tmp_path):
    where = {"source": "tfds", "data_dir": os.fspath(tmp_path)}
    command = "python main.py --mode=prepare --config configs/default.py --config.data.name="
    message = fails(f"{command}cifar10 --config.data.data_dir={tmp_path}`", name="cifar10", **where)
    assert "manual_dir" not in message
    fails(
        tmp_path, f"{command}imagenet2012", "ILSVRC2012_img_val.tar", name="imagenet2012", **where
    )
    fails(tmp_path, f"{command}imagenette/320px-v2", name="imagenette/320px-v2", **where)
    fails(tmp_path, "tfds build mnist --file_format=array_record", name="mnist", **where)
    fails("'../x'", "name/config", name="../x", **where)
    made = write_prepared(tmp_path, [encoded(noise(0, 8, 8))], [0])
    fails(made, "validation or test", "it has train", name="tiny", split="test", **where)
    made.parent.rename(tmp_path / "small")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "small").rename(tmp_path / "tiny" / "small")
    fails("tiny/small", name="tiny", **where)


def test_other_file_formats_and_lost_files_are_named(tmp_path):
    made = write_prepared(tmp_path, [encoded(noise(0, 8, 8))], [0])
    where = {"source": "tfds", "name": "tiny", "data_dir": os.fspath(tmp_path)}
    info = made / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace('"array_record"', '"tfrecord"'))
    fails(made, "tfrecord", "--file_format=array_record", f"--data_dir={tmp_path}`", **where)
    info.write_text("{")
    fails(info, "JSON", **where)
    info.write_text(text)
    (shard,) = made.glob("*.array_record*")
    shard.unlink()
    fails(shard, "missing", **where)


@pytest.mark.parametrize("text", [None, "{", "{}", "[]"])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_unreadable_metadata_is_named(tmp_path, file, text):
    made = write_prepared(tmp_path, [encoded(noise(0, 8, 8))], [0])
    (made / file).unlink()
    if text is not None:
        (made / file).write_text(text)
    # Without dataset_info.json there is no data set to speak of: only its place can be named.
    named = tmp_path if (file, text) == ("dataset_info.json", None) else made
    fails(named, source="tfds", name="tiny", data_dir=os.fspath(tmp_path))


@pytest.mark.parametrize("shape", [(8, 8, 3), (None, None, 3)], ids=["in memory", "streamed"])
def test_a_damaged_shard_is_named(tmp_path, shape):
    made = write_prepared(
        tmp_path, [encoded(noise(i, 8, 8)) for i in range(6)], [0] * 6, shape=shape
    )
    (shard,) = made.glob("*.array_record*")
    data = bytearray(shard.read_bytes())
    data[200:300] = bytes(100)  # amid the first chunk of records
    shard.write_bytes(data)
    with pytest.raises(UsageError) as error:
        list(eval_batches(load_source("tfds", "tiny", os.fspath(tmp_path), "train"), PLAIN, 2))
    one_line(error, made, "cannot be read")


def test_a_large_set_streams(tmp_path, monkeypatch):
    write_prepared(tmp_path, [encoded(noise(i, 8, 8)) for i in range(3)], [0, 1, 2])
    monkeypatch.setattr(load_module, "IN_MEMORY_BYTES", 100)
    source = load_source("tfds", "tiny", os.fspath(tmp_path), "train")
    assert not isinstance(source, ArraySource)
    assert len(source) == 3
