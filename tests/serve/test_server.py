"""Requests to the server: answers, limits, damaged images, batches and the end."""

import dataclasses
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from repvgg_jax.data.decode import jpeg
from repvgg_jax.serve.limits import Limits
from repvgg_jax.serve.onnx_model import open_onnx
from tests.support.color_model import write_color_model
from tests.support.serving import colored, exchange, malformed, multipart, request, serving

LIMITS = Limits(requests=8, bytes=200_000, files=4, pixels=1_000_000, seconds=60)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_onnx(write_color_model(tmp_path_factory.mktemp("models") / "colors.onnx"))


@pytest.fixture(scope="module")
def port(model):
    with serving(model, LIMITS) as (port, _):
        yield port


def best(answer):
    return [found["classes"][0]["class"] for found in json.loads(answer)["images"]]


def test_an_image_and_a_form_of_images_are_classified(port):
    status, answer = exchange(port, request(colored("blue"), "/predict?top_k=2"))
    (found,) = json.loads(answer)["images"]
    first, second = found["classes"]
    assert (status, found["name"], first["class"], first["index"]) == (200, None, "blue", 2)
    assert first["probability"] > second["probability"] > 0
    header, body = multipart(
        colored("lime"), colored("red", kind="PNG"), colored("blue", kind="WEBP")
    )
    status, answer = exchange(port, request(body, headers=header))
    assert (status, best(answer)) == (200, ["green", "red", "blue"])
    assert [found["name"] for found in json.loads(answer)["images"]] == ["0.jpg", "1.jpg", "2.jpg"]


def test_pages_health_metrics_and_api(port, model):
    def get(path):
        status, body = exchange(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert status == 200
        return body.decode()

    assert json.loads(get("/healthz"))["model"] == model.description == "colors.onnx: fused, colors"
    assert "Drop images here" in get("/")
    operation = json.loads(get("/openapi.json"))["paths"]["/predict"]["post"]
    assert "image/*" in operation["requestBody"]["content"]
    before = get("/metrics")
    exchange(port, request(colored("red")))
    exchange(port, request(b"x"))
    after = get("/metrics")

    def value(text, name):
        return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(name))

    for name, more in [
        ('repvgg_requests_total{status="200"}', 1),
        ('repvgg_requests_total{status="400"}', 1),
        ("repvgg_request_seconds_count", 2),
        ("repvgg_batch_images_sum", 1),
    ]:
        assert value(after, name) - value(before, name) == more


def test_malformed_requests_are_refused_and_the_server_goes_on(port):
    for seed in range(58):  # two of each kind
        name, sent, statuses = malformed(seed, LIMITS)
        status, _ = exchange(port, sent, end=name == "short body")
        assert status in statuses, name
    assert best(exchange(port, request(colored("red")))[1]) == ["red"]


def test_a_damaged_file_of_a_form_is_named(port):
    header, body = multipart(colored("red"), colored("red")[:-30])
    status, answer = exchange(port, request(body, headers=header))
    assert (status, json.loads(answer)["detail"][:21]) == (400, "cannot decode 1.jpg: ")


def test_slow_bodies_and_silent_connections_end(model):
    with serving(model, dataclasses.replace(LIMITS, seconds=0.2)) as (port, server):
        server.config.timeout_keep_alive = 0.2
        assert exchange(port, request(b"x" * 10, length=20))[0] == 408
        with socket.create_connection(("127.0.0.1", port), timeout=60) as silent:
            silent.sendall(b"POST /pre")
            assert silent.recv(1) == b""


def test_connections_end_with_their_clients(model):
    with serving(model, LIMITS) as (port, server):
        server.config.timeout_keep_alive = 3600
        exchange(port, request(colored("red")))
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(request(colored("red")))
            connection.shutdown(socket.SHUT_WR)
            assert connection.makefile("rb").read().startswith(b"HTTP/1.1 200 OK")
        wait(lambda: not server.server_state.connections)


def test_clients_that_leave_are_counted(model):
    header, body = multipart(colored("red"))
    with serving(model, LIMITS) as (port, _):
        for headers in ("", header):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(request(body, headers=headers, length=1000))
        left = b'repvgg_requests_total{status="499"} 2.0'
        wait(lambda: left in exchange(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")[1])


def test_a_request_that_is_sent_before_an_answer_is_not_cut_off(model):
    calls = []

    def run(images):
        calls.append(len(images))
        if len(calls) == 2:
            time.sleep(1.5)
        return model.run(images)

    sent = 2 * request(colored("red"))
    with serving(dataclasses.replace(model, run=run), LIMITS) as (port, server):
        server.config.timeout_keep_alive = 1  # from the first answer, before the second
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(sent)
            answers = connection.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 200 OK") == 2


class Held:
    """A model that computes nothing until it is released."""

    def __init__(self, model):
        self.started, self.released, self.sizes = threading.Event(), threading.Event(), []
        self.model = dataclasses.replace(model, run=self.run)
        self.compute = model.run

    def run(self, images):
        self.sizes.append(len(images))
        self.started.set()
        assert self.released.wait(60)
        return self.compute(images)


def wait(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_concurrent_requests_are_computed_together_and_those_beyond_the_limit_refused(model):
    held, colors = Held(model), ["red", "lime", "blue", "red", "lime", "blue", "red", "lime"]
    with serving(held.model, LIMITS, max_delay=2) as (port, server), ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(exchange, port, request(colored("red")))]
        assert held.started.wait(60)
        answers += [pool.submit(exchange, port, request(colored(color))) for color in colors[1:]]
        wait(lambda: len(server.server_state.tasks) == 8)
        assert exchange(port, request(colored("red")))[0] == 503
        held.released.set()
        names = ["green" if color == "lime" else color for color in colors]
        assert [best(each.result()[1])[0] for each in answers] == names
    assert held.sizes == [1, 4, 3]


def test_accepted_requests_are_answered_before_the_server_ends(model):
    held = Held(model)
    with serving(held.model, LIMITS) as (port, server), ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(exchange, port, request(colored("red"))) for _ in range(6)]
        wait(lambda: len(server.server_state.tasks) == 6)
        server.should_exit = True
        wait(lambda: not server.servers[0].is_serving())
        held.released.set()
        assert [each.result()[0] for each in answers] == [200] * 6


def test_an_error_of_the_model_is_the_answer_to_its_requests_only(model):
    calls = []

    def run(images):
        calls.append(len(images))
        if len(calls) == 1:
            raise RuntimeError("no memory")
        return model.run(images)

    with serving(dataclasses.replace(model, run=run), LIMITS) as (port, _):
        assert exchange(port, request(colored("red")))[0] == 500
        assert exchange(port, request(colored("red")))[0] == 200
        _, metrics = exchange(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b'repvgg_requests_total{status="500"} 1.0' in metrics


def test_outputs_that_are_not_finite_are_an_error_in_one_line(model, caplog, capfd):
    run = lambda images: np.full((len(images), 3), np.nan, np.float32)  # noqa: E731
    with serving(dataclasses.replace(model, run=run), LIMITS) as (port, _):
        status, answer = exchange(port, request(colored("red")))
    reason = "the net's outputs for the image are not finite"
    assert (status, json.loads(answer)) == (500, {"detail": reason})
    assert caplog.messages == ["the outputs of the net for an image are not finite"]
    assert "Traceback" not in capfd.readouterr().err


def test_an_image_without_memory_is_refused(model, monkeypatch):
    def decode(data, rows, factor):
        raise MemoryError

    with serving(model, LIMITS) as (port, _), monkeypatch.context() as patch:
        patch.setattr(jpeg, "decode", decode)
        status, answer = exchange(port, request(colored("red")))
    assert (status, json.loads(answer)["detail"][:9]) == (503, "no memory")
