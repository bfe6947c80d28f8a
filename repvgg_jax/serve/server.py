"""The HTTP application: classification of images, health, metrics and a page to try it on."""

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
from absl import logging

from repvgg_jax.data.decode.image import CorruptImageError, open_image
from repvgg_jax.errors import RunError
from repvgg_jax.serve.batching import Batcher
from repvgg_jax.serve.limits import Gate, Limits, RefusedError
from repvgg_jax.serve.metrics import Metrics
from repvgg_jax.serve.model import Model
from repvgg_jax.version import __version__

# Formats that browsers show, whose decoders are hardened against malicious files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

_BINARY = {"type": "string", "format": "binary"}
_FILES = {"type": "object", "properties": {"file": {"type": "array", "items": _BINARY}}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/*": {"schema": _BINARY}, "multipart/form-data": {"schema": _FILES}},
    }
}
_RESULT = {"class": "daisy", "index": 985, "probability": 0.93}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The most probable classes of each image, in the order of the request",
        "content": {
            "application/json": {"example": {"images": [{"name": "a.jpg", "classes": [_RESULT]}]}}
        },
    },
    400: {"description": "A file is not an image, damaged, or has too many pixels"},
    408: {"description": "The body did not arrive in time"},
    413: {"description": "The body is too large"},
    503: {"description": "The server is overloaded; retry later"},
}


def make_app(model: Model, batcher: Batcher, limits: Limits, metrics: Metrics) -> Any:
    """Returns the ASGI application, a FastAPI, which starts and stops the batcher."""
    from fastapi import FastAPI, Query, Request
    from fastapi.responses import FileResponse, JSONResponse, Response
    from starlette.requests import ClientDisconnect

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield

    app = FastAPI(
        title="repvgg_jax", description=model.description, version=__version__, lifespan=lifespan
    )
    app.add_middleware(Gate, limits=limits, observe=metrics.request)
    classes = len(model.names)

    @app.post("/predict", summary="Classify images", openapi_extra=_BODY, responses=_RESPONSES)
    async def predict(
        request: Request, top_k: Annotated[int, Query(ge=1, le=classes)] = min(5, classes)
    ) -> Response:
        """Classifies the image in the body, or each file of a multipart form."""
        try:
            images = await _images(request, limits)
        except ClientDisconnect:
            raise RefusedError(499, "the client has left") from None
        rows = await _classify(batcher, images, limits)
        found = [
            {"name": name, "classes": _best(row, model.names, top_k)}
            for (name, _), row in zip(images, rows, strict=True)
        ]
        return JSONResponse({"images": found})

    @app.get("/healthz", summary="Report that the server is ready")
    async def healthz() -> dict[str, Any]:
        """Returns the model, its number of classes and the side of its input in pixels."""
        size = model.transform.eval_size
        return {"status": "ok", "model": model.description, "classes": classes, "image_size": size}

    @app.get("/metrics", summary="Metrics for Prometheus")
    async def show_metrics() -> Response:
        """Returns the metrics as text."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(Path(__file__).with_name("page.html"), media_type="text/html")

    return app


async def _images(request: Any, limits: Limits) -> list[tuple[str | None, bytes]]:
    """Returns the name and bytes of each image in a request; a body has no name."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return [(None, await request.body())]
    async with request.form(max_files=limits.files, max_fields=limits.files) as form:
        files = [value for _, value in form.multi_items() if not isinstance(value, str)]
        if not files:
            raise RefusedError(400, "the form has no file")
        return [(file.filename, await file.read()) for file in files]


async def _classify(
    batcher: Batcher, images: list[tuple[str | None, bytes]], limits: Limits
) -> list[np.ndarray]:
    """Returns the probabilities of each image.

    Raises:
      RefusedError: if an image is damaged, does not fit into the memory, or has no finite
        probabilities, which also logs an error.
    """
    tasks = []
    try:
        async with asyncio.TaskGroup() as group:
            for name, data in images:
                opened = partial(
                    open_image,
                    data,
                    name or "the image",
                    most_pixels=limits.pixels,
                    formats=FORMATS,
                )
                tasks.append(group.create_task(batcher.classify(opened)))
    except ExceptionGroup as group_error:  # the group has cancelled the other images
        error = group_error.exceptions[0]
        if isinstance(error, CorruptImageError):
            raise RefusedError(400, f"cannot decode {error.where}: {error.cause}") from error
        if isinstance(error, RunError):
            raise RefusedError(503, "no memory to decode an image; retry later") from error
        raise error from None
    rows = [task.result() for task in tasks]
    for (name, _), row in zip(images, rows, strict=True):
        if not np.isfinite(row).all():
            logging.error("the outputs of the net for an image are not finite")
            raise RefusedError(500, f"the net's outputs for {name or 'the image'} are not finite")
    return rows


def _best(row: np.ndarray, names: tuple[str, ...], top_k: int) -> list[dict[str, Any]]:
    order = np.argsort(-row, kind="stable")[:top_k].tolist()
    return [{"class": names[k], "index": k, "probability": float(row[k])} for k in order]


def make_server(app: Any, seconds: float) -> Any:
    """Returns the uvicorn server of an application.

    After SIGTERM or SIGINT, it answers the requests that it has accepted for at most `seconds`, and
    then waits for the batch and the decodes in progress. A second SIGINT ends the process at once.
    """
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit and sig == signal.SIGINT:
                os._exit(128 + sig)
            self.should_exit = True

    config = uvicorn.Config(
        app,
        http=_protocol(),
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(seconds),
    )
    return Server(config)


def _protocol() -> type[asyncio.Protocol]:
    """Returns uvicorn's protocol, made strict towards clients that leave a request unfinished."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        _is_half_closed = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_request(self.cycle)

        def on_response_complete(self) -> None:
            answered = self.cycle
            super().on_response_complete()  # may begin the next request, if it is here already
            if self._is_half_closed and self.cycle is answered:
                self.transport.close()
            else:
                self._await_request(answered)

        def eof_received(self) -> bool:
            self._is_half_closed = True
            if self.conn.their_state is h11.SEND_BODY:
                self.data_received(b"")  # the body is too short: 400
            # Keeps the connection open for the answer to a complete request.
            return self.cycle is not None and not self.cycle.response_complete

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(msg)
            else:
                self.transport.close()  # the request has been answered

        def _await_request(self, cycle: Any) -> None:
            # Closes a connection on which no request has begun after a while, such as one that
            # sends half a head, or the rest of a body that was refused.
            self.loop.call_later(self.timeout_keep_alive, self._close_after, cycle)

        def _close_after(self, cycle: Any) -> None:
            if self.cycle is cycle and not self.transport.is_closing():
                self.transport.close()

    return Protocol
