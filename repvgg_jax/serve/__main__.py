"""Serves a run or an exported file over HTTP, with a page on which to try it.

  python -m repvgg_jax.serve --model=model.onnx [--port=8000]

--model is an .onnx or .stablehlo file of --mode=export, or the workdir of a run. POST an image to
/predict; /docs describes the API, /metrics is for Prometheus. Stop it with Ctrl-C or SIGTERM:
requests that it accepted are answered first. Needs pip install -e '.[serve]'.
"""

import argparse
import importlib.util
import math
import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    # Until the server runs. A KeyboardInterrupt would print a traceback, and the first process of a
    # container gets only signals that it handles.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))

from repvgg_jax.errors import RunError, UsageError, one_line
from repvgg_jax.runtime.files import local_path
from repvgg_jax.runtime.messages import inform, print_error, show_messages
from repvgg_jax.serve.batching import Batcher
from repvgg_jax.serve.limits import Limits
from repvgg_jax.serve.metrics import Metrics
from repvgg_jax.serve.model import CPU_BATCH, Model
from repvgg_jax.serve.open import open_model
from repvgg_jax.serve.server import make_app, make_server

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


class _Parser(argparse.ArgumentParser):
    """A parser that raises UsageError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists the flags")


def arguments(argv: list[str]) -> argparse.Namespace:
    """Returns the parsed arguments."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser("python -m repvgg_jax.serve", description=__doc__, formatter_class=formatter)

    def add(name: str, default: float | str, text: str) -> None:
        text = f"{text} ({default})"
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)

    limits = Limits()
    parser.add_argument("--model", required=True, help="an exported file, or a workdir")
    parser.add_argument("--step", type=int, help="step of the weights of a workdir")
    add("host", "127.0.0.1", "address to listen on; 0.0.0.0 for all")
    add("port", 8000, "port to listen on; 0 for any free one")
    text = (
        f"images that are computed together ({CPU_BATCH}, or what the model takes if that is less)"
    )
    parser.add_argument("--max_batch", type=int, help=text)
    add("max_delay_ms", 5.0, "time that an image waits for others")
    add("threads", len(os.sched_getaffinity(0)), "threads that decode images")
    add("max_requests", limits.requests, "requests at a time; others get 503")
    add("max_bytes", limits.bytes, "size of a request's body")
    add("max_files", limits.files, "images in a request")
    add("max_pixels", limits.pixels, "pixels of an image")
    add("timeout", limits.seconds, "seconds for a request")
    options = parser.parse_args(argv)
    for name, value in vars(options).items():
        if not isinstance(value, int | float):
            continue
        may_be_zero = name in ("port", "step", "max_delay_ms")
        if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
            least = "at least" if may_be_zero else "above"
            parser.error(f"--{name}={value}: must be {least} 0 and finite")
    return options


def compiled_model(path: Path, step: int | None, max_batch: int | None) -> tuple[Model, int]:
    """Returns the model of `open_model`, compiled for the server's batches, and their largest size.

    Raises:
      UsageError: if it cannot be opened, or takes only smaller batches.
      RunError: if its devices do not start, or their memory is exhausted.
    """
    with ExitStack() as stack:
        if path.suffix.lower() != ".onnx":
            from repvgg_jax.runtime import devices
            from repvgg_jax.runtime.processes import prepare_process

            prepare_process(deterministic=False)
            stack.enter_context(devices.explaining_absent_devices())
            stack.enter_context(devices.explaining_exhausted_memory("lower --max_batch"))
        model = open_model(path, step)
        most = max_batch or min(CPU_BATCH, model.batch_size)
        if most > model.batch_size:
            raise UsageError(
                f"--max_batch={most}: {model.description} takes at most {model.batch_size} images "
                "at a time"
            )
        model.compile(most)
        return model, most


def address(host: str, port: int) -> str:
    """Returns host:port as in a URL, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main(argv: list[str]) -> None:
    """Serves the model of the arguments until it is told to stop."""
    options = arguments(argv)
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise UsageError(f"the server needs {missing[0]}: pip install -e '.[serve]'")
    path = local_path(options.model, "--model")
    model, max_batch = compiled_model(path, options.step, options.max_batch)
    limits = Limits(
        options.max_requests,
        options.max_bytes,
        options.max_files,
        options.max_pixels,
        options.timeout,
    )
    metrics, delay = Metrics(), options.max_delay_ms / 1000
    batcher = Batcher(model, max_batch, delay, options.threads, metrics.batch)
    app = make_app(model, batcher, limits, metrics)
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        wanted = address(options.host, options.port)
        raise UsageError(f"cannot listen on {wanted} ({one_line(error)})") from None
    server = make_server(app, limits.seconds + 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)  # as uvicorn does, but only once it runs
    inform(f"{model.description}; http://{address(*listener.getsockname()[:2])} (Ctrl-C stops)")
    server.run(sockets=[listener])


if __name__ == "__main__":
    show_messages()
    try:
        main(sys.argv[1:])
    except RunError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
