"""A damaged file is an image or CorruptImageError with its name, whatever was damaged."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from repvgg_jax.data.augment.transforms import resized_crop
from repvgg_jax.data.decode.image import CorruptImageError, open_image
from tests.support.image_files import encoded, noise

# Under pytest a filter of warnings, which the decoder sets once, lasts for a test.
pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = {
    "baseline JPEG": ("JPEG", {}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {"quality": 30}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "GIF": ("GIF", {}),
    "TIFF": ("TIFF", {}),
    "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "BMP": ("BMP", {}),
}


def damaged(data):
    """Yields the file truncated, with each byte of its header replaced, and with zeroed runs."""
    for at in range(len(data)):
        yield data[:at]
    for at in range(min(len(data), 250)):
        for value in {0, 255, data[at] ^ 1} - {data[at]}:
            yield data[:at] + bytes([value]) + data[at + 1 :]
    for length in (3, 17, 64):
        for at in range(0, len(data) - length, 4):
            yield data[:at] + bytes(length) + data[at + length :]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_an_image_or_an_error_that_names_it(kind):
    name, options = KINDS[kind]
    smooth = Image.fromarray(noise(0, 3, 3)).resize((11, 9))
    whole = encoded(np.asarray(smooth), name, **options)
    images, errors = 0, []
    for data in damaged(whole):
        try:
            image = open_image(data, "record 7")
            pixels = image.rgb()
            if pixels.size < 1 << 20:
                width, height = image.size
                box = (width // 3, height // 3, width - width // 4, height - height // 4)
                assert resized_crop(open_image(data, "record 7"), box, 2).shape == (2, 2, 3)
        except CorruptImageError as error:
            errors.append(str(error))
        else:
            images += 1
            assert pixels.shape == (*image.size[::-1], 3)
            assert pixels.dtype == np.uint8
    assert images > 10
    assert len(errors) > 10
    for message in errors:
        assert message.startswith("cannot decode the image record 7: ")
        assert "\n" not in message


def test_a_jpeg_of_more_scans_than_an_encoder_writes_is_an_error():
    data = encoded(noise(0), "JPEG", progressive=True)
    assert open_image(data, "a.jpg").rgb().shape == (12, 10, 3)
    with pytest.raises(CorruptImageError, match=r"it has 3\d\d scans, more than 200"):
        open_image(data[:-2] + b"\xff\xda" * 300 + data[-2:], "a.jpg")
