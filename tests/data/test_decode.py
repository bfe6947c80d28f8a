"""Fast decoding compared with Pillow's, on JPEGs of every kind that libjpeg writes."""

import importlib.util
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from repvgg_jax.bench.input import run_bench_data
from repvgg_jax.data.augment.transforms import resized_crop
from repvgg_jax.data.decode.image import CorruptImageError, open_image
from repvgg_jax.data.decode.resize import resize


def picture(width, height, seed=0):
    """Returns an image of smooth shapes with edges and grain, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), int)
    smooth[height // 3 : height // 2, width // 4 : width // 2] //= 2
    return np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


def jpeg(width, height, seed=0, mode="RGB", **options):
    data = io.BytesIO()
    Image.fromarray(picture(width, height, seed)).convert(mode).save(data, "JPEG", **options)
    return data.getvalue()


KINDS = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "gray": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (64, 48), (333, 251)])
def test_whole_images_are_pillows_bit_for_bit(kind, size):
    data = jpeg(*size, **KINDS[kind])
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    image = open_image(data, "x")
    assert image.size == size
    np.testing.assert_array_equal(image.rgb(), expected)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(max_examples=12)
def test_crops_are_nearly_those_of_the_whole_image(kind, data):
    """Reduced scales differ by about a gray level: libjpeg averages, Pillow uses a triangle."""
    width, height = data.draw(st.integers(60, 700)), data.draw(st.integers(60, 700))
    left = data.draw(st.integers(0, width // 2))
    top = data.draw(st.integers(0, height // 2))
    box = (left, top, data.draw(st.integers(left + 20, width)), height - top // 2)
    encoded = jpeg(width, height, **KINDS[kind])
    whole = Image.open(io.BytesIO(encoded)).convert("RGB")
    expected = whole.resize((32, 32), Image.Resampling.BILINEAR, box=box)
    fast = resized_crop(open_image(encoded, "x"), box, 32)
    difference = np.abs(fast.astype(int) - np.asarray(expected, int))
    assert difference.mean() < 1.5
    assert np.quantile(difference, 0.99) < 12


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64))
@settings(max_examples=40)
def test_resizing_is_pillows_to_rounding(width, height, size):
    pixels = picture(width, height)
    box = (0.1 * width, 0.0, 0.9 * width, 0.7 * height)
    expected = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=box)
    difference = np.abs(resize(pixels, box, size).astype(int) - np.asarray(expected, int))
    assert difference.max() <= 2
    assert difference.mean() < 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [1, 30, 0.3, 0.7, 0.95, -1])
def test_a_truncated_jpeg_is_an_error_and_not_a_gray_picture(kind, kept):
    data = jpeg(200, 160, **KINDS[kind])
    cut = data[: int(kept * len(data)) if 0 < kept < 1 else kept]
    with pytest.raises(CorruptImageError, match="record 7"):
        open_image(cut, "record 7").rgb()
    with pytest.raises(CorruptImageError, match="record 7"):
        resized_crop(open_image(cut, "record 7"), (10, 10, 150, 150), 32)


def test_the_bench_names_what_is_not_installed(tmp_path, capsys, monkeypatch):
    from configs import a0

    for index in range(6):
        folder = tmp_path / "data" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.jpg").write_bytes(jpeg(90, 70, seed=index))
    config = a0.get_config()
    config.data.update(source="folder", data_dir=str(tmp_path / "data"), image_size=16, resize=18)
    config.train.batch_size = 4
    monkeypatch.setattr("repvgg_jax.bench.input._IMAGES", 8)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run_bench_data(config, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "tf.data: not measured, tensorflow is not installed" in printed
    assert "pip install -e '.[bench]'" in printed
    report = json.loads((tmp_path / "run/bench_data.json").read_text())
    (row,) = report["pipelines"]
    assert row["images_per_second"] > 0
    assert set(report["shares"]) == {"read", "decode", "resize", "crop, flip, batch"}
