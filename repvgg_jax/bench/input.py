"""`--mode=bench_data`: throughput of the training pipeline, interleaved with baselines."""

import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from repvgg_jax.bench import baselines
from repvgg_jax.bench.timing import ratio
from repvgg_jax.config.build import make_source, make_transform
from repvgg_jax.config.fields import check_values
from repvgg_jax.config.resolve import resolve
from repvgg_jax.config.workdir import check_writable, named_write_errors
from repvgg_jax.data.augment.rectangles import random_box
from repvgg_jax.data.augment.transforms import Transform, train_image
from repvgg_jax.data.decode.image import open_image
from repvgg_jax.data.decode.resize import resize
from repvgg_jax.data.pipeline import train_batches
from repvgg_jax.data.sampler import example_rng, stream_indices
from repvgg_jax.data.sources.base import EncodedSource
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.files import write_json

ROUNDS = 7
# Minimum number of images per round and pipeline, after one batch per core as a warm-up.
_IMAGES = 1024
# Maximum number of files used, so that all of them fit in the operating system's file cache.
_FILES = 2048
OURS = "repvgg_jax"
_INSTALL = {
    "tensorflow": "pip install -e '.[bench]'",
    "torch": "pip install torch (a CPU build suffices)",
}


def run_bench_data(config: ConfigDict, workdir: Path | None) -> None:
    """Times the pipelines, prints a table and, given a workdir, writes `bench_data.json` there."""
    config = resolve(config)
    check_values(config)
    transform, batch_size = make_transform(config), config.train.batch_size
    if config.data.source != "folder" or transform.augmentation != "resized_crop":
        raise UsageError(
            "--mode=bench_data needs data.source=folder and data.augmentation=resized_crop, since "
            "it compares JPEG decoders"
        )
    if workdir is not None:
        check_writable(workdir)
    source = make_source(config, "train")
    chosen = stream_indices(len(source), config.seed, 0, min(len(source), _FILES))
    source = source.select(chosen.tolist())
    cores = len(os.sched_getaffinity(0))
    pipelines, missing = _pipelines(source, transform, batch_size, config.seed, cores)
    seconds = _measure(pipelines, batch_size, cores)
    shares = _shares(source, transform, config.seed)
    print(f"{len(source)} images of {config.data.data_dir}, batches of {batch_size}, {cores} cores")
    rows = _rows(seconds, cores)
    _print(rows, shares, missing)
    if workdir is not None:
        report = {"machine": platform.machine(), "cores": cores, "batch_size": batch_size}
        report |= {"pipelines": rows, "shares": shares, "missing": missing}
        with named_write_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / "bench_data.json", report)


def _measure(
    pipelines: dict[str, baselines.Batches], batch_size: int, cores: int
) -> dict[str, list[float]]:
    """Returns the seconds per image of each pipeline in each round, after a round of warm-up.

    Each batch is made by one thread, so a multiple of the number of cores is timed.
    """
    batches_per_core = max(2, -(-_IMAGES // (batch_size * cores)))
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(ROUNDS + 1):
        for name, batches in pipelines.items():
            iterator = batches((batches_per_core + 1) * cores)
            for _ in range(cores):
                next(iterator)
            started = time.perf_counter()
            for _ in range(batches_per_core * cores):
                next(iterator)
            elapsed = time.perf_counter() - started
            del iterator  # stops its threads before another pipeline is timed
            seconds[name].append(elapsed / (batches_per_core * cores * batch_size))
    return {name: values[1:] for name, values in seconds.items()}


def _pipelines(
    source: EncodedSource, transform: Transform, batch_size: int, seed: int, cores: int
) -> tuple[dict[str, baselines.Batches], list[str]]:
    """Returns the pipelines by name, and a line for each that is not installed."""
    records = source.read(range(len(source)))  # also loads them into the file cache
    if others := sum(record.data[:2] != b"\xff\xd8" for record in records):
        raise UsageError(
            f"{others} of {len(records)} images are not JPEGs; "
            "--mode=bench_data needs a folder of JPEGs"
        )
    paths, labels = [record.where for record in records], [record.label for record in records]
    images = baselines.Images(paths, labels, transform.image_size)
    del records

    def ours(count: int) -> Iterator[Any]:
        return train_batches(source, transform, batch_size, seed, workers=cores)

    makers: dict[str, tuple[str, Callable[..., baselines.Batches]]] = {
        "tf.data": ("tensorflow", partial(baselines.tf_data, antialias=True)),
        "tf.data, not antialiased": ("tensorflow", partial(baselines.tf_data, antialias=False)),
        "Pillow in torch's DataLoader": ("torch", baselines.torch_loader),
    }
    pipelines: dict[str, baselines.Batches] = {OURS: ours}
    missing = []
    for name, (package, make) in makers.items():
        if importlib.util.find_spec(package) is None:
            install = _INSTALL[package]
            missing.append(f"{name}: not measured, {package} is not installed ({install})")
        else:
            pipelines[name] = make(images, batch_size, cores)
    return pipelines, missing


def _shares(source: EncodedSource, transform: Transform, seed: int) -> dict[str, float]:
    """Returns the fractions of one thread's time for reading, decoding, resizing and the rest."""
    totals = {"read": 0.0, "decode": 0.0, "resize": 0.0}
    size, count = transform.image_size, min(len(source), 512)
    for position in range(count):
        start = time.perf_counter()
        (record,) = source.read([position])
        read = time.perf_counter()
        image = open_image(record.data, record.where)
        box = random_box(example_rng(seed, position), *image.size)
        opened = time.perf_counter()
        part = image.part(box, size)
        decoded = time.perf_counter()
        resize(*part, size)
        totals["read"] += read - start
        totals["decode"] += decoded - opened
        totals["resize"] += time.perf_counter() - decoded
    batch = np.empty((count, size, size, 3), np.uint8)
    start = time.perf_counter()
    for position in range(count):
        (record,) = source.read([position])
        image = open_image(record.data, record.where)
        batch[position] = train_image(image, transform, seed, position)
    whole = time.perf_counter() - start
    shares = {stage: seconds / whole for stage, seconds in totals.items()}
    return shares | {"crop, flip, batch": max(0.0, 1 - sum(shares.values()))}


def _rows(seconds: dict[str, list[float]], cores: int) -> list[dict[str, Any]]:
    rows = []
    for name, values in seconds.items():
        rate = 1 / statistics.median(values)
        rows.append(
            {
                "pipeline": name,
                "images_per_second": rate,
                "images_per_second_per_core": rate / cores,
                "slowest_and_fastest_round": [1 / max(values), 1 / min(values)],
                "ours_speedup": ratio(seconds, name, to=OURS),
            }
        )
    return rows


def _print(rows: list[dict[str, Any]], shares: dict[str, float], missing: list[str]) -> None:
    print(f"{'pipeline':<30} {'images/s':>9} {'a core':>7} {'rounds':>13} {'ours/its':>9}")
    for row in rows:
        low, high = row["slowest_and_fastest_round"]
        print(
            f"{row['pipeline']:<30} {row['images_per_second']:>9.0f} "
            f"{row['images_per_second_per_core']:>7.0f} {low:>6.0f}-{high:<6.0f} "
            f"{row['ours_speedup']:>9.2f}"
        )
    print("ours, one thread: " + ", ".join(f"{stage} {x:.0%}" for stage, x in shares.items()))
    for line in missing:
        print(line)
