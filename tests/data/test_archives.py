"""Downloads from a server on this machine that drops its connections."""

import contextlib
import dataclasses
import hashlib
import http.server
import os
import re
import threading

import numpy as np
import pytest

from repvgg_jax.data.prepare.archives import Archive, download
from repvgg_jax.data.prepare.prepare import prepare
from repvgg_jax.data.sources.load import load_source
from repvgg_jax.errors import UsageError
from tests.support.official_archives import make_cifar, with_archives


@contextlib.contextmanager
def serving(data, drop_after=None, ranges=True):
    """Runs a server of one file that drops every connection after `drop_after` bytes."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers["Range"])
            if self.path != "/file.bin":
                return self.send_error(404)
            start = int(re.fullmatch(r"bytes=(\d+)-", asked[-1])[1]) if ranges else 0
            self.send_response(206 if ranges else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(data[start:][:drop_after])

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/file.bin", asked
    finally:
        server.shutdown()
        server.server_close()


def published(data, url):
    return Archive("file.bin", len(data), f"sha256:{hashlib.sha256(data).hexdigest()}", url)


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_resumes(tmp_path, ranges):
    data = np.random.default_rng(0).bytes(5_000_000)
    (tmp_path / "file.bin.part").write_bytes(data[:100])
    with serving(data, 2_000_000 if ranges else None, ranges) as (url, asked):
        path = download(published(data, url), tmp_path, pause=0)
    assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["file.bin"]
    starts = [100, 2_000_100, 4_000_100] if ranges else [100]
    assert asked == [f"bytes={start}-" for start in starts]


def test_failed_downloads_are_named_and_keep_their_bytes(tmp_path):
    data = np.random.default_rng(0).bytes(100_000)
    with serving(data[:60_000]) as (url, _):
        with pytest.raises(UsageError, match=r"60,000 of 100,000 bytes were sent.*byte 60,000"):
            download(published(data, url), tmp_path, pause=0)
        with pytest.raises(UsageError, match="404"):
            download(published(data, url + "s"), tmp_path, pause=0)
    with pytest.raises(UsageError, match="refused"):  # the server is down
        download(published(data, url), tmp_path, pause=0)
    assert (tmp_path / "file.bin.part").stat().st_size == 60_000
    with serving(data) as (url, asked):
        assert download(published(data, url), tmp_path).read_bytes() == data
    assert asked == ["bytes=60000-"]


def test_a_download_of_something_else_is_removed(tmp_path):
    data = np.random.default_rng(0).bytes(1000)
    with serving(data[::-1]) as (url, _), pytest.raises(UsageError, match="was removed"):
        download(published(data, url), tmp_path, pause=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.medium
def test_a_downloaded_set(tmp_path):
    path, _ = make_cifar(tmp_path / "server")
    sets = with_archives("cifar10", [path])
    with serving(path.read_bytes(), 50_000) as (url, _):
        archive = dataclasses.replace(sets["cifar10"].archives[0], url=url)
        sets = {"cifar10": dataclasses.replace(sets["cifar10"], archives=(archive,))}
        prepare("cifar10", tmp_path / "data", sets=sets)
    assert (tmp_path / "data/downloads" / path.name).read_bytes() == path.read_bytes()
    assert len(load_source("tfds", "cifar10", str(tmp_path / "data"), "test")) == 4
