"""Limits on requests, which bound the server's memory and the time that a client can occupy it.

The middleware is plain ASGI: a function of `scope` (the request line and headers), `receive` (the
next part of the body) and `send` (the next part of the answer).
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """Limits on requests. At most `requests * bytes` of bodies are in memory.

    Attributes:
      requests: number of requests at a time; the answer to others is 503.
      bytes: size of a request's body.
      files: images in a request.
      pixels: size of an image, which is decoded to three bytes a pixel.
      seconds: time from the head of a request to its answer.
    """

    requests: int = 128
    bytes: int = 10_000_000
    files: int = 32
    pixels: int = 25_000_000
    seconds: float = 20.0


class RefusedError(Exception):
    """A request that is answered with an error: its status code and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Gate:
    """ASGI middleware that applies limits to POST requests, and answers refused ones.

    Args:
      app: application, which may raise `RefusedError`.
      limits: limits on requests.
      observe: function called after each request with its status and seconds.
    """

    def __init__(self, app: App, limits: Limits, observe: Callable[[int, float], object]):
        self._app = app
        self._limits = limits
        self._observe = observe
        self._active = 0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        start, body, answer = time.monotonic(), _Body(receive, self._limits.bytes), _Answer(send)
        self._active += 1
        try:
            if self._active > self._limits.requests:
                raise RefusedError(
                    503, f"{self._limits.requests} requests are in progress; retry later"
                )
            _check_length(scope, self._limits.bytes)
            async with asyncio.timeout(self._limits.seconds):
                await self._app(scope, body.receive, answer.send)
        except RefusedError as error:
            await answer.refuse(error.status, error.reason)
        except TimeoutError:
            missing = "answer" if body.is_complete else "complete body"
            status = 503 if body.is_complete else 408
            await answer.refuse(status, f"no {missing} within {self._limits.seconds:g} s")
        except Exception:
            answer.status = 500  # which the framework sends
            raise
        finally:
            self._active -= 1
            self._observe(answer.status, time.monotonic() - start)


def _check_length(scope: dict[str, Any], most: int) -> None:
    """Raises RefusedError if the header of a request says that its body is too large."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if not length.isdigit() or int(length) > most:
        raise _too_large(most)


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"the body has more than {most:,} bytes")


class _Body:
    """The body of a request; reading more bytes than allowed raises RefusedError."""

    def __init__(self, receive: Receive, most: int):
        self.is_complete = False
        self._receive = receive
        self._most = most
        self._count = 0

    async def receive(self) -> dict[str, Any]:
        message = await self._receive()
        self._count += len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        if self._count > self._most:
            raise _too_large(self._most)
        return message


class _Answer:
    """The answer to a request; `status` is 499 until it starts, as for a client that has left."""

    def __init__(self, send: Send):
        self.status = 499
        self._send = send

    async def send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        await self._send(message)

    async def refuse(self, status: int, reason: str) -> None:
        """Sends an error, unless an answer has started."""
        if self.status != 499:
            return
        text = json.dumps({"detail": reason}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(text))}
        if status == 503:
            headers["retry-after"] = "1"
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": text})
