"""A headless Chromium, driven over its own pipe: pages as browsers lay them out, in light and dark and at any width."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 200
"""A machine may be busy."""
START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1:3]]
for descriptor, end in zip((3, 4), ends):
    os.dup2(end, descriptor)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads commands from descriptor 3 and answers on 4."""
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Shown(NamedTuple):
    """What happened when a page was opened."""

    requests: list[str]
    """Addresses that were asked for, but for what the page itself holds."""
    errors: list[str]
    """Of scripts, and what the browser complained of."""
    value: Any
    """What the script that was asked for returned."""


class Chromium:
    """One browser, for several pages; a context manager."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._number, self._unread, self._events = 0, b"", list[dict[str, Any]]()

    def __enter__(self) -> Chromium:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        command = [self._command, *OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(to_browser), str(from_browser), *command],
            pass_fds=(to_browser, from_browser), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def open(self, page: Path, script: str, *, width: int, dark: bool = False, image: Path | None = None) -> Shown:
        """Open a page of a file in a new tab and run a script in it; `image` takes a screenshot of all of it."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        tab = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._events.clear()
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._ask(f"{domain}.enable", tab)
        self._ask("Emulation.setDeviceMetricsOverride", tab, width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", tab, features=[scheme])
        self._ask("Page.navigate", tab, url=page.resolve().as_uri())
        self._wait_for("Page.loadEventFired", tab)
        found = self._ask("Runtime.evaluate", tab, expression=script, returnByValue=True)
        if image is not None:
            taken = self._ask("Page.captureScreenshot", tab, captureBeyondViewport=True)
            image.write_bytes(base64.b64decode(taken["data"]))
        self._ask("Target.closeTarget", targetId=target)
        events = [(event["method"], event["params"]) for event in self._events if event.get("sessionId") == tab]
        asked = [params["request"]["url"] for method, params in events if method == "Network.requestWillBeSent"]
        errors = [params["exceptionDetails"]["text"] for method, params in events if method == "Runtime.exceptionThrown"]
        errors += [
            params["entry"]["text"]
            for method, params in events
            if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning")
        ]
        if "exceptionDetails" in found:
            errors.append(str(found["exceptionDetails"]))
        own = page.resolve().as_uri()
        return Shown(
            [url for url in asked if url != own and not url.startswith("data:")], errors, found.get("result", {}).get("value")
        )

    def _ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._events.append(answer)

    def _wait_for(self, method: str, session: str) -> None:
        while not any(event.get("method") == method and event.get("sessionId") == session for event in self._events):
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._unread:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"{self._command} did not answer for {SECONDS} s")
            part = os.read(self._read, 2**20)
            if not part:
                raise RuntimeError(f"{self._command} ended with exit code {self._process.wait(10)}")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)
