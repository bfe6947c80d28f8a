"""The server as a process: its page in a browser, its memory, and its end by SIGTERM."""

import base64
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from repvgg_jax.serve.limits import Limits
from tests.support.browser import CHROMIUM, browser
from tests.support.color_model import write_color_model
from tests.support.commands import ROOT, python
from tests.support.image_files import write
from tests.support.serving import colored, exchange, malformed, request
from tests.support.stablehlo_model import write_stablehlo

# As in the container, which has neither.
WITHOUT_JAX = """
import runpy, sys
sys.modules["jax"] = sys.modules["flax"] = None
runpy.run_module("repvgg_jax.serve", run_name="__main__", alter_sys=True)
"""

# Ctrl-C while onnxruntime is imported.
INTERRUPTED = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(name, *_):
        if name == "onnxruntime":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt)
runpy.run_module("repvgg_jax.serve", run_name="__main__", alter_sys=True)
"""


@contextmanager
def process_of(model, *flags):
    command = [sys.executable, "-c", WITHOUT_JAX, f"--model={model}", "--port=0", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        yield process, int(re.search(r"colors.onnx: fused, colors; http://127\S+:(\d+)", line)[1])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_color_model(tmp_path_factory.mktemp("models") / "colors.onnx")


@pytest.fixture(scope="module")
def server(model):
    with process_of(model) as pair:
        yield pair


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
def test_the_page_shows_bars_of_dropped_images(server, tmp_path):
    folder, (_, port) = tmp_path, server
    write(folder / "sea.png", colored("blue", kind="PNG"))
    write(folder / "notes.png", b"no picture")
    with browser(folder / "profile") as page:
        page.call("Page.navigate", url=f"http://127.0.0.1:{port}/")
        page.wait(
            "document.readyState == 'complete' && document.querySelector('#model').textContent"
        )
        page.drop(300, 200, folder / "sea.png", folder / "notes.png")
        page.wait("document.querySelectorAll('.row').length == 3")
        page.wait("document.querySelectorAll('.error').length == 1")
        bars = page.run(
            "[...document.querySelectorAll('.row')].map(row => [row.innerText.split('\\n'),"
            " row.querySelector('.bar div').getBoundingClientRect().width])"
        )
        error = page.run("document.querySelector('.error').innerText")
        shot = page.call("Page.captureScreenshot")["data"]
    (folder / "page.png").write_bytes(base64.b64decode(shot))
    names, widths = zip(*bars, strict=True)
    assert names[0][0] == "blue"
    assert re.fullmatch(r"\d\d\.\d%", names[0][1])
    assert widths[0] > widths[1] > 0
    assert error == "notes.png: cannot decode the image: cannot identify image file"


def test_a_signal_ends_the_server_after_its_answers(server):
    process, port = server
    photo = request(colored("red", size=(3000, 3000)))
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(exchange, port, photo) for _ in range(16)]
        next(each for each in answers if each.result())
        process.send_signal(signal.SIGTERM)
        statuses = []
        for each in answers:
            with suppress(ConnectionError):  # it was not accepted
                statuses.append(each.result()[0])
    assert set(statuses) == {200}
    assert (process.wait(60), process.stderr.read()) == (0, "")


def test_a_signal_at_the_start_ends_the_server(model):
    with process_of(model) as (process, _):
        process.send_signal(signal.SIGINT)  # as soon as it has printed its address
        assert (process.wait(60), process.stderr.read()) == (0, "")
    command = ("-c", INTERRUPTED, f"--model={model}", "--port=0")
    assert python(*command, code=130) == ""


def test_errors_are_one_line(model, tmp_path):
    (tmp_path / "noise.onnx").write_bytes(model.read_bytes()[:100])
    write_stablehlo(tmp_path / "a.stablehlo")
    environment = os.environ | {"JAX_PLATFORMS": "abacus"}
    for file, expected in [
        ("noise.onnx", "noise.onnx cannot be read as an ONNX model"),
        ("a.stablehlo", "JAX_PLATFORMS=abacus: JAX has no platform abacus"),
    ]:
        command = ("-m", "repvgg_jax.serve", "--model", tmp_path / file)
        error = python(*command, code=2, env=environment)
        assert expected in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_a_thousand_malformed_requests_leave_the_memory_as_it_was(model):
    limits = Limits()
    with process_of(model, "--timeout=2") as (process, port):

        def refused(seed):
            name, sent, statuses = malformed(seed, limits)
            status, _ = exchange(port, sent, end=name == "short body")
            assert status in statuses, name

        def memory():
            _, text = exchange(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            return float(re.search(rb"\nprocess_resident_memory_bytes (\S+)", text)[1])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(refused, range(300)))
            before = memory()
            list(pool.map(refused, range(300, 1300)))
            slow = [pool.submit(exchange, port, request(b"x", length=100)) for _ in range(8)]
            assert {each.result()[0] for each in slow} == {408}
        growth = memory() - before
        print(
            f"{before / 1e6:.0f} MB after 300 requests, and {growth / 1e6:.1f} MB more after 1,000"
        )
        assert growth < 30e6
        assert exchange(port, request(colored("red")))[0] == 200
        process.send_signal(signal.SIGTERM)
        assert (process.wait(60), process.stderr.read()) == (0, "")
