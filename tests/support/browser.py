"""A headless Chromium, driven by its DevTools protocol over two pipes."""

import contextlib
import json
import os
import shutil
import subprocess

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page:
    """A page of the browser."""

    def __init__(self, read, write):
        self._read, self._write, self._count, self._session = read, write, 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def call(self, method, **params):
        """Calls a method of the DevTools protocol, and returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            text = bytearray()
            while (byte := self._read.read(1)) != b"\0":
                assert byte, "the browser has ended"
                text += byte
            answer = json.loads(text)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script):
        """Returns the value of a JavaScript expression, awaited if it is a promise."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition, seconds=60):
        """Waits until a JavaScript expression is true."""
        script = (
            f"new Promise((done, fail) => {{ setTimeout(() => fail('timeout'), {seconds * 1000});"
            f" setInterval(() => {{ if ({condition}) done(true); }}, 20); }})"
        )
        assert self.run(script)

    def drop(self, x, y, *files):
        """Drops files at a point of the page."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)


@contextlib.contextmanager
def browser(folder):
    """Yields a page of a browser whose profile is in a folder."""
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run"]
    redirect = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", redirect, "bash", CHROMIUM, *flags],
        pass_fds=(theirs_in, theirs_out),
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    with open(ours_in, "rb") as read, open(ours_out, "wb") as write:
        try:
            yield Page(read, write)
        finally:
            process.terminate()
            process.wait()
