"""A real headless Chromium, driven through the two pipes it offers for that: no driver, no port, no package.

Owns one browser and one page at a time, and what the page asked for and complained about. The protocol is Chrome's
DevTools protocol, JSON messages that end in a zero byte.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 30.0
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage", "--mute-audio",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


def find_browser() -> str:
    """The browser of this machine. Fails the test, with the remedy, where there is none: nothing is skipped."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise AssertionError(f"no browser on PATH, expected one of {', '.join(NAMES)}; to do: `make browser`")


@dataclass(kw_only=True)
class Page:
    """An open page: what it requested over the network, and what appeared on its console."""

    browser: "Browser"
    session: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    loaded: bool = False
    width: int = 0

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command."""
        return self.browser.send(method, session=self.session, **parameters)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give the page a screen of this size, and the scheme its reader prefers."""
        self.width = width
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> None:
        """Load a file, and wait until it and all it asks for are there; what was heard before is forgotten."""
        self.requests.clear()
        self.complaints.clear()
        self.loaded = False
        self.send("Page.navigate", url=path.as_uri())
        self.browser.wait_for(lambda: self.loaded)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression on the page; the page's own policy does not bind it."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    def pdf(self) -> bytes:
        """The page as it would be printed."""
        answer = self.send("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(answer["data"])


class Browser:
    """A running Chromium; `open_browser` starts and ends it."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._number = 0
        self._rest = b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}

    def new_page(self) -> Page:
        """An empty page whose network and console are watched from now on."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(browser=self, session=session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        return page

    def send(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The answer to one command; an error fails the test."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        self.wait_for(lambda: number in self._answers)
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer}"
        result: dict[str, Any] = answer["result"]
        return result

    def wait_for(self, condition: Any) -> None:
        """Read what the browser says until the condition holds."""
        end = time.monotonic() + _SECONDS
        while not condition():
            ready, _, _ = select([self._from], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._from, 1 << 20) if ready else b""
            assert data, "the browser did not answer"
            *messages, self._rest = (self._rest + data).split(b"\0")
            for message in messages:
                self._hear(json.loads(message))

    def _hear(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        page, event = self._pages.get(message.get("sessionId", "")), message.get("params", {})
        if page is None:
            return
        match message["method"]:
            case "Page.loadEventFired":
                page.loaded = True
            case "Network.requestWillBeSent":
                page.requests.append(event["request"]["url"])
            case "Runtime.exceptionThrown":
                page.complaints.append(str(event["exceptionDetails"].get("text")))
            case "Runtime.consoleAPICalled":
                page.complaints.append(f"{event['type']}: {event['args']}")
            case "Log.entryAdded":
                page.complaints.append(f"{event['entry']['level']}: {event['entry']['text']}")


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A Chromium with a fresh profile in `folder`, ended with all its children when the block is left."""
    ours_read, theirs_write = os.pipe()
    theirs_read, ours_write = os.pipe()
    # Chromium reads commands from descriptor 3 and answers on 4.
    command = f'exec "$0" "$@" 3<&{theirs_read} 4>&{theirs_write}'
    flags = (*_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank")
    process = subprocess.Popen(
        ["bash", "-c", command, find_browser(), *flags],
        pass_fds=(theirs_read, theirs_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    os.close(theirs_read)
    os.close(theirs_write)
    browser = Browser(ours_write, ours_read)
    try:
        yield browser
        browser.send("Browser.close")
    finally:
        os.close(ours_write)
        os.close(ours_read)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
