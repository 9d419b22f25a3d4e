"""A headless Chromium, driven over its debugging protocol."""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_PATIENCE = 20.0  # seconds


class PageIsGoneError(RuntimeError):
    """The page was left while it was asked."""


class Browser:
    """One tab."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._count = 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=_PATIENCE))
            if answer.get("id") == self._count:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise PageIsGoneError(answer)
                assert "error" not in answer, answer
                return answer["result"]

    def size(self, width: int, height: int = 1000) -> None:
        """Sets the window."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def theme(self, name: str) -> None:
        """What the system prefers: ``light`` or ``dark``."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def open(self, url: str) -> None:
        """Goes to an address and waits until it is there."""
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        """The value of an expression."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while not self._is_true_here(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)

    def _is_true_here(self, script: str) -> bool:
        try:
            return bool(self.evaluate(script))
        except PageIsGoneError:
            return False  # asked while the page gave way to the next

    def click(self, script: str) -> None:
        """Clicks on the element that an expression gives, and waits for the page that it leads to."""
        before = self.evaluate("location.href")
        self.evaluate(f"({script}).click()")
        self.wait(f"location.href !== {json.dumps(before)} && document.readyState === 'complete'")

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Writes what is seen."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser of its own, which reaches this machine alone."""
    from websockets.sync.client import connect

    assert CHROMIUM
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += ["--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={profile}"]
    # Its socket lies in TMPDIR, and a socket's path has 107 characters at most.
    env = {**os.environ, "TMPDIR": "/tmp"}
    process = subprocess.Popen([*command, "about:blank"], stderr=subprocess.PIPE, text=True, env=env)
    assert process.stderr
    try:
        for line in process.stderr:
            if found := re.search(r"DevTools listening on (ws://\S+)", line):
                break
        else:
            raise AssertionError("Chromium did not start")
        with connect(found[1], max_size=None) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        process.wait(timeout=_PATIENCE)
        process.stderr.close()
