"""Compares the throughput of --mode=predict with that of its parts: decoding, and the net.

  python -m experiments.benchmarks.prediction --model=model.onnx --images=photos [--rounds=7]

Each round decodes all images, then runs the net on the decoded images, then does both as predict
does. On a CPU both share the cores, so that predict can reach 1 / (1/decode + 1/net) images/s at
most, unless one of the two leaves cores idle. Prints medians over the rounds, and of the ratios
within a round.
"""

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from experiments.benchmarks.markdown import markdown
from experiments.sweeps.flags import Parser, path_type, run_command
from repvgg_jax.cli.predict import files_source, find_images, probabilities
from repvgg_jax.data.sources.base import EncodedSource
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.devices import cpu_cores
from repvgg_jax.serve.model import Model
from repvgg_jax.serve.open import open_model


def decoded(model: Model, source: EncodedSource) -> np.ndarray:
    """Returns all images of a source as the model takes them, decoded by one thread per core."""

    def prepared(index: int) -> np.ndarray:
        example = source.decode(source.read([index])[0], model.prepare)
        if example is None:
            raise UsageError("an image is damaged; remove it")
        return example.image

    with ThreadPoolExecutor(cpu_cores()) as pool:
        return np.stack(list(pool.map(prepared, range(len(source)))))


def batches(model: Model, images: np.ndarray) -> list[np.ndarray]:
    """Returns the probabilities of prepared images, batch by batch."""
    starts = range(0, len(images), model.batch_size)
    return [model.run(images[start : start + model.batch_size]) for start in starts]


def rate(count: int, call: Callable[[], object]) -> float:
    """Returns the images per second of a call that handles `count` images."""
    start = time.perf_counter()
    call()
    return count / (time.perf_counter() - start)


def main() -> None:
    """Prints the table."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--model", type=path_type, required=True, action="append", help="file or workdir; repeat it"
    )
    parser.add_argument("--images", type=path_type, required=True, help="folder of images")
    parser.add_argument("--rounds", type=int, default=7, help="number of rounds")
    options = parser.parse_args()
    source = files_source(find_images(options.images))
    lines = []
    for path in options.model:
        model = open_model(path)
        images = decoded(model, source)
        calls = {
            "decode": lambda: decoded(model, source),  # noqa: B023
            "net": lambda: batches(model, images),  # noqa: B023
            "predict": lambda: list(probabilities(model, source)),  # noqa: B023
        }
        for call in calls.values():
            call()
        rounds = [
            {name: rate(len(source), call) for name, call in calls.items()}
            for _ in range(options.rounds)
        ]
        of_slower = [row["predict"] / min(row["decode"], row["net"]) for row in rounds]
        of_shared = [row["predict"] * (1 / row["decode"] + 1 / row["net"]) for row in rounds]
        medians = [statistics.median(row[name] for row in rounds) for name in calls]
        ratios = [statistics.median(values) for values in (of_slower, of_shared)]
        lines.append(
            [model.description, *(f"{m:.0f}" for m in medians), *(f"{r:.2f}" for r in ratios)]
        )
    print(f"images/s of {len(source)} images, {cpu_cores()} cores, {options.rounds} rounds\n")
    header = ["model", "decode", "net", "predict", "of the slower", "of shared cores"]
    print(markdown(header, lines))


if __name__ == "__main__":
    sys.exit(run_command(main))
