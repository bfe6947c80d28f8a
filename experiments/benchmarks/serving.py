"""Puts the server under load from concurrent clients, and compares it with direct inference.

  python -m experiments.benchmarks.serving --model=model.onnx --images=photos [--clients=32]

Each round classifies the images directly, as --mode=predict does, and then through a server, which
is another process on the same cores; so are the clients. Prints images per second of both, the
median of the ratios within a round, processor time, which other work on the machine changes less,
the latency, and the number of requests without a correct answer: that of direct inference.
"""

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from experiments.benchmarks.prediction import batches, decoded, rate
from experiments.sweeps.flags import Parser, path_type, run_command
from repvgg_jax.cli.predict import files_source, find_images, probabilities
from repvgg_jax.errors import RunError
from repvgg_jax.runtime.devices import cpu_cores
from repvgg_jax.serve.open import open_model


@contextmanager
def server(model: Path, *flags: str) -> Iterator[int]:
    """Starts a server of a model, and yields its port; stops it on exit, and checks that it ends.

    Raises:
      RunError: if it fails.
    """
    command = [sys.executable, "-m", "repvgg_jax.serve", f"--model={model}", "--port=0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    try:
        if (match := re.search(r"http://\S+:(\d+)", line)) is None:
            raise RunError(f"the server did not start: {line.strip()}")
        yield int(match[1])
    finally:
        process.terminate()
        rest = process.communicate()[1].strip()
    if process.returncode or rest:
        raise RunError(f"the server ended with code {process.returncode}: {rest}")


def processor_seconds(port: int) -> float:
    """Returns the processor time that the server has used so far."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        match = re.search(r"\nprocess_cpu_seconds_total (\S+)", answer.read().decode())
    assert match is not None
    return float(match[1])


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> tuple[int, dict]:
    """Posts an image on an open connection, and returns the status and the answer."""
    head = f"POST /predict?top_k=1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert length is not None
    return int(head[9:12]), json.loads(await reader.readexactly(int(length[1])))


async def load(
    port: int, bodies: list[bytes], classes: list[int], count: int, clients: int
) -> tuple[list[float], int]:
    """Sends `count` requests from concurrent clients, each of which waits for its answers.

    Args:
      port: port of the server.
      bodies: encoded images, which are sent in turn.
      classes: most probable class of each.
      count: number of requests.
      clients: number of clients.

    Returns:
      The latency of each request in seconds, and how many had no correct answer.
    """
    left, seconds, wrong = iter(range(count)), [], 0

    async def client() -> None:
        nonlocal wrong
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for index in left:
            start = time.perf_counter()
            try:
                status, answer = await post(reader, writer, bodies[index % len(bodies)])
                found = answer["images"][0]["classes"][0]["index"] if status == 200 else None
                wrong += found != classes[index % len(bodies)]
            except (OSError, EOFError):
                wrong += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            seconds.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return seconds, wrong


def main() -> None:
    """Prints the figures."""
    parser = Parser(__doc__)
    parser.add_argument("--model", type=path_type, required=True, help="file or workdir")
    parser.add_argument("--images", type=path_type, required=True, help="folder of images")
    parser.add_argument("--clients", type=int, default=32, help="concurrent clients")
    parser.add_argument("--requests", type=int, default=2000, help="requests in all")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    options = parser.parse_args()
    model = open_model(options.model)
    paths = find_images(options.images)
    source, bodies = files_source(paths), [Path(path).read_bytes() for path in paths]
    images = decoded(model, source)
    classes = [int(row.argmax()) for batch in batches(model, images) for row in batch]
    share = options.requests // options.rounds
    direct, net, served, ratios, seconds, wrong = [], [], [], [], [], 0
    work: dict[str, list[float]] = {"direct": [], "server": [], "clients": []}
    with server(options.model) as port:
        asyncio.run(load(port, bodies, classes, len(bodies), options.clients))
        for _ in range(options.rounds):
            net.append(rate(len(images), lambda: batches(model, images)))
            own = time.process_time()
            direct.append(rate(len(source), lambda: list(probabilities(model, source))))
            work["direct"].append((time.process_time() - own) / len(source))
            start, own, theirs = time.perf_counter(), time.process_time(), processor_seconds(port)
            latencies, failed = asyncio.run(load(port, bodies, classes, share, options.clients))
            served.append(share / (time.perf_counter() - start))
            work["clients"].append((time.process_time() - own) / share)
            work["server"].append((processor_seconds(port) - theirs) / share)
            ratios.append(served[-1] / direct[-1])
            seconds += latencies
            wrong += failed
    middle = statistics.median
    p50, p99 = (1e3 * quantile for quantile in np.quantile(seconds, (0.5, 0.99)))
    costs = ", ".join(f"{name} {1e3 * middle(each):.1f} ms" for name, each in work.items())
    print(
        f"{model.description}; {options.clients} clients, {cpu_cores()} cores\n"
        f"net alone {middle(net):.1f}, direct {middle(direct):.1f}, server {middle(served):.1f} "
        f"images/s; server / direct {middle(ratios):.2f}\n"
        f"processor time an image: {costs}\n"
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms; {wrong} of {len(seconds)} requests without a correct "
        "answer"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
