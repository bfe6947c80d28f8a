"""Compares the time and accuracy of decoders that turn a JPEG into a training crop.

  python -m experiments.benchmarks.decoders --folder=/data/imagenet/train [--size=224]

Uses the first 400 JPEGs of the class folders; needs `pip install -e '.[bench]'`.
Times are CPU times of one thread, as medians over interleaved rounds.
"""

import io
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from experiments.benchmarks.flags import check_installed
from experiments.sweeps.flags import Parser, path_type, run_command
from repvgg_jax.data.augment.rectangles import random_box
from repvgg_jax.data.augment.transforms import resized_crop
from repvgg_jax.data.decode.image import open_image
from repvgg_jax.data.sampler import example_rng
from repvgg_jax.errors import UsageError

ROUNDS, FILES = 5, 400

Box = tuple[int, int, int, int]


def pillow_whole(data: bytes, box: Box, size: int) -> np.ndarray:
    """Decodes the whole image, then resizes the crop with Pillow's antialiased bilinear filter."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def pillow_draft(data: bytes, box: Box, size: int) -> np.ndarray:
    """Decodes with Pillow at the smallest of libjpeg's scales that still covers the crop."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    left, top, right, bottom = box
    image.draft("RGB", (width * size // (right - left), height * size // (bottom - top)))
    image = image.convert("RGB")
    x, y = image.width / width, image.height / height
    part = (left * x, top * y, right * x, bottom * y)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=part))


def opencv(data: bytes, box: Box, size: int) -> np.ndarray:
    """Decodes with OpenCV at one of libjpeg's scales; resizes by INTER_AREA or INTER_LINEAR."""
    import cv2

    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    factor = next((f for f in (8, 4, 2) if side >= f * size), 1)
    mode = "IMREAD_COLOR" if factor == 1 else f"IMREAD_REDUCED_COLOR_{factor}"
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), getattr(cv2, mode))
    part = pixels[top // factor : -(-bottom // factor), left // factor : -(-right // factor)]
    method = cv2.INTER_AREA if min(part.shape[:2]) >= size else cv2.INTER_LINEAR
    return cv2.cvtColor(cv2.resize(part, (size, size), interpolation=method), cv2.COLOR_BGR2RGB)


def simplejpeg_pillow(data: bytes, box: Box, size: int) -> np.ndarray:
    """Decodes with simplejpeg at the crop's scale, then resizes with Pillow."""
    pixels, part = open_image(data, "bench").part(box, size)
    resampling = Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize((size, size), resampling, box=part))


def ours(data: bytes, box: Box, size: int) -> np.ndarray:
    """Decodes the crop with simplejpeg, then resizes with cykooz-resizer, as training does."""
    return resized_crop(open_image(data, "bench"), box, size)


DECODERS: dict[str, Callable[[bytes, Box, int], np.ndarray]] = {
    "Pillow, whole": pillow_whole,
    "Pillow, draft": pillow_draft,
    "OpenCV, reduced": opencv,
    "simplejpeg, Pillow": simplejpeg_pillow,
    "simplejpeg, cykooz-resizer": ours,
}


def main() -> None:
    """Prints the table."""
    parser = Parser(__doc__)
    text = "class folders of JPEGs"
    parser.add_argument("--folder", type=path_type, required=True, help=text)
    parser.add_argument("--size", type=int, default=224, help="side of the crops in pixels")
    options = parser.parse_args()
    check_installed("cv2", extra="bench")
    import cv2

    cv2.setNumThreads(1)
    files = sorted(options.folder.rglob("*.[jJ][pP]*[gG]"))[:FILES]
    if not files:
        raise UsageError(f"--folder={options.folder} has no JPEGs")
    images = [path.read_bytes() for path in files]
    sizes = [Image.open(io.BytesIO(data)).size for data in images]
    boxes = [random_box(example_rng(0, i), *size) for i, size in enumerate(sizes)]
    pairs = list(zip(images, boxes, strict=True))
    reference = [pillow_whole(*pair, options.size).astype(int) for pair in pairs]
    seconds: dict[str, list[float]] = {name: [] for name in DECODERS}
    for _ in range(ROUNDS):
        for name, decode in DECODERS.items():
            started = time.process_time()
            for pair in pairs:
                decode(*pair, options.size)
            seconds[name].append((time.process_time() - started) / len(pairs))
    print(f"{len(images)} JPEGs, crops of {options.size} pixels; differences in gray levels")
    print(f"{'decoder':<28}{'ms':>7}{'mean diff.':>12}{'99.9%':>7}")
    for name, decode in DECODERS.items():
        differences = np.concatenate(
            [
                np.abs(decode(*pair, options.size).astype(int) - expected).ravel()
                for pair, expected in zip(pairs, reference, strict=True)
            ]
        )
        milliseconds = 1e3 * statistics.median(seconds[name])
        mean, far = differences.mean(), np.quantile(differences, 0.999)
        print(f"{name:<28}{milliseconds:>7.2f}{mean:>12.2f}{far:>7.0f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
