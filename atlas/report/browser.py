"""A page in a real browser: headless Chromium, driven through a pipe. For pictures in documents, tests and timings."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE_SECONDS = 60.0
NOTHING_HAPPENS_MS = 100


class BrowserError(RuntimeError):
    """The browser did not do what it was asked to; the message says what."""


def find_browser() -> str | None:
    """Path of an installed Chromium; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A browser with one page, its own empty profile and no network. Use it as a context manager.

    `requests` are the addresses that the newest page asked for, `errors` its exceptions and console errors.
    """

    def __init__(self, width: int = 1280, height: int = 900, *, dark: bool = False, mobile: bool = False) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._count, self._buffer = 0, b""
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process, self._write, self._read = _start(self._profile.name)
        try:
            self._session = self._attach()
            self.resize(width, height, mobile=mobile)
            self.set_dark(dark)
        except BaseException:
            self.close()
            raise

    def _attach(self) -> str:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = str(self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable", session=session)
        return session

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Set the window's size in CSS pixels; `mobile`: a touch screen of a phone, with twice the pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if mobile else 1}
        self.call("Emulation.setDeviceMetricsOverride", **size, mobile=mobile)
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def set_dark(self, dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, page: Path, query: str = "") -> float:
        """Load a file; returns the seconds until its load event, as the page's own clock tells."""
        self.requests, self.errors = [], []
        self.call("Page.navigate", url=page.resolve().as_uri() + query)
        wanted = page.resolve().name
        self.wait(f"document.readyState === 'complete' && location.pathname.endsWith({json.dumps(wanted)})")
        self.settle()
        return float(self.run("performance.getEntriesByType('navigation')[0].loadEventEnd")) / 1000

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for. Raises `BrowserError`."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(f"{script}: {_text_of(found['exceptionDetails'])}")
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true. Raises `BrowserError`."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.run(condition):
            if time.monotonic() > end:
                raise BrowserError(f"never came to be: {condition}")
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait until the page had time for what it does when it comes into view."""
        self.run(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame("
            f"() => setTimeout(done, {NOTHING_HAPPENS_MS}))))"
        )

    def picture(self, path: Path, *, element: str = "", whole: bool = False) -> None:
        """Save a PNG of the window, of the `whole` page, or of the first `element` that a CSS selector finds."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole or bool(element)}
        box = self.run(_BOX % json.dumps(element or "html")) if whole or element else None
        if box:
            options["clip"] = {**box, "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))

    def call(self, method: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol, for this page."""
        return self._call(method, session=self._session, **parameters)

    def _call(self, method: str, *, session: str = "", **parameters: Any) -> Any:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive(method)).get("id") != self._count:
            self._notice(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _receive(self, method: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], PATIENCE_SECONDS)
            part = os.read(self._read, 1 << 20) if ready else b""
            if not part:
                raise BrowserError(f"{method}: the browser does not answer")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _notice(self, event: dict[str, Any]) -> None:
        kind, told = event.get("method"), event.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.errors.append(_text_of(told["exceptionDetails"]))
        elif kind == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"]["text"])

    def close(self) -> None:
        for descriptor in (self._write, self._read):
            os.close(descriptor)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_BOX = (
    "(() => { const box = document.querySelector(%s).getBoundingClientRect();"
    " return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height}; })()"
)


def _text_of(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details.get("text"))


def _start(profile: str) -> tuple[subprocess.Popen[bytes], int, int]:
    """The process, and the ends of its pipe: it reads commands from descriptor 3 and answers on 4."""
    browser = find_browser()
    if browser is None:
        raise BrowserError(f"no browser found: install one of {', '.join(NAMES)}")
    commands, write = os.pipe()
    read, answers = os.pipe()
    script = f'exec "$@" 3<&{commands} 4>&{answers}'
    command = ["bash", "-c", script, "bash", browser, *FLAGS, f"--user-data-dir={profile}"]
    try:
        process = subprocess.Popen(
            command, pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    finally:
        os.close(commands)
        os.close(answers)
    return process, write, read
