"""A server in a thread, and requests that a client of it should not send."""

import contextlib
import io
import random
import socket
import struct
import threading
import zlib
from functools import cache

import numpy as np
from PIL import Image

from repvgg_jax.serve.batching import Batcher
from repvgg_jax.serve.limits import Limits
from repvgg_jax.serve.metrics import Metrics
from repvgg_jax.serve.server import make_app, make_server


@contextlib.contextmanager
def serving(model, limits=Limits(seconds=5), max_delay=0.005):  # noqa: B008
    """Yields the port of a server in a thread, and the server."""
    metrics = Metrics()
    batcher = Batcher(model, 4, max_delay, 2, metrics.batch)
    server = make_server(make_app(model, batcher, limits, metrics), limits.seconds)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join()


def exchange(port, request, end=False):
    """Sends bytes, and returns the status and the body of the answer; `end` closes our half."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):  # refused before all of it was read
            connection.sendall(request)
        if end:
            connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as file:
            status = int(file.readline().split()[1])
            headers = dict(line.lower().split(b": ") for line in iter(file.readline, b"\r\n"))
            length = int(headers.get(b"content-length", b"0"))
            return status, file.read(length)


def request(body, path="/predict", headers="", length=None):
    """Returns the bytes of a POST request."""
    length = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n".encode()
        + body
    )


def colored(color, size=(20, 16), kind="JPEG", **options):
    """Returns an encoded image of one color."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind, **options)
    return file.getvalue()


@cache
def oversized(pixels, kind):
    """Returns an image of a few more pixels, which Pillow would decode."""
    return colored("red", (1000, pixels // 1000 + 1), kind)


def multipart(*files, boundary="B"):
    """Returns the header and the body of a form."""
    parts = b"".join(
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="%d.jpg"\r\n\r\n%s\r\n'
        % (index, file)
        for index, file in enumerate(files)
    )
    return f"Content-Type: multipart/form-data; boundary={boundary}\r\n", parts + b"--B--\r\n"


def png_bomb(side=40_000):
    """Returns a PNG of a few kilobytes with `side` x `side` pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(1 + side // 8) * 64, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def jpeg_of_size(data, side):
    """Returns a JPEG whose header has another size."""
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return data[: frame + 5] + struct.pack(">HH", side, side) + data[frame + 9 :]


def malformed(seed, limits):
    """Returns the name, the bytes and the right statuses of a request that must be refused."""
    rng = random.Random(seed)
    noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", progressive=seed % 2 == 0)
    photo = file.getvalue()
    scans = photo[:-2] + b"\xff\xda" * 300 + b"\xff\xd9"
    head = "POST /predict HTTP/1.1\r\nHost: x\r\n"
    form, body = multipart(photo)
    big = limits.bytes + 1
    chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()
    kinds = {
        "truncated": (request(photo[: rng.randrange(1, len(photo) - 2)]), {400}),
        "random bytes": (request(rng.randbytes(rng.randrange(5000))), {400}),
        "text": (request(b"hello", headers="Content-Type: text/plain\r\n"), {400}),
        "json": (request(b'{"image": 1}', headers="Content-Type: application/json\r\n"), {400}),
        "huge": (request(bytes(big)), {413}),
        "huge in chunks": (chunked + chunk * (1 + big // (1 << 16)) + b"0\r\n\r\n", {413}),
        "png bomb": (request(png_bomb()), {400}),
        "jpeg bomb": (request(jpeg_of_size(photo, 65_000)), {400}),
        "many scans": (request(scans), {400}),
        "too many pixels": (request(oversized(limits.pixels, ("JPEG", "PNG")[seed % 2])), {400}),
        "tiff": (request(colored("red", kind="TIFF")), {400}),
        "gif bomb": (request(b"GIF89a" + b"\xff" * 4 + bytes(30)), {400}),
        "damaged png": (request(colored("red", kind="PNG")[:-20] + rng.randbytes(8)), {400}),
        "bmp bomb": (
            request(
                b"BM"
                + struct.pack(
                    "<IIIIiiHHIIiiII", 0, 0, 54, 40, 1 << 20, 1 << 20, 1, 24, 0, 0, 0, 0, 0, 0
                )
            ),
            {400},
        ),
        "short body": (request(photo, length=len(photo) + 100), {400}),
        "negative length": (request(photo, length=-1), {400}),
        "length of letters": (request(photo, length="ten"), {400}),
        "two lengths": (request(photo, headers="Content-Length: 3\r\n"), {400}),
        "half a form": (request(body[:100], headers=form), {400}),
        "form without boundary": (request(body, headers=form.partition(";")[0] + "\r\n"), {400}),
        "form of text": (request(multipart(b"hello")[1], headers=form), {400}),
        "form without a file": (request(b"--B--\r\n", headers=form), {400}),
        "too many files": (request(multipart(*[b""] * 99)[1], headers=form), {400}),
        "huge head": (f"{head}X: {'x' * 100_000}\r\n\r\n".encode(), {400}),
        "no http": (rng.randbytes(200) + b"\r\n\r\n", {400}),
        "wrong path": (request(photo, "/predict/x"), {404}),
        "wrong method": (b"PUT /predict HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
        "wrong top_k": (request(photo, "/predict?top_k=0"), {422}),
        "bad chunks": (chunked + b"zz\r\n", {400}),
    }
    name = list(kinds)[seed % len(kinds)]
    return name, *kinds[name]
