"""A headless Chromium, driven through chromedriver's own protocol: HTTP and JSON, no library."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types import TracebackType

SLOW = 60.0
"""Seconds that a browser may take to start or to answer on a machine that has other things to do."""

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    # Nothing but what the page asks for goes out.
    *("--disable-quic", "--no-first-run", "--disable-background-networking"),
    *(
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ),
)


@cache
def why_no_browser() -> str:
    """Why no page can be looked at here; "" when it can."""
    missing = [
        name
        for name, found in (("chromium", _chromium()), ("chromedriver", _driver()))
        if found is None
    ]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


def _driver() -> str | None:
    return shutil.which("chromedriver")


class Browser:
    """``with Browser() as browser:`` has one window, light, of a desktop's size; all of it ends with the block."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        self._process, port = _start_driver(self._folder.name)
        self._base = f"http://127.0.0.1:{port}"
        try:
            self._session = (
                "/session/" + self._call("POST", "/session", self._wishes())["sessionId"]
            )
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._end()

    # What a person does

    def open(self, url: str) -> None:
        """Go to a page."""
        self._call("POST", self._session + "/url", {"url": url})

    def show(self, width: int, height: int, *, dark: bool = False) -> None:
        """Have the window of this size, in CSS pixels, and the scheme of colours that the person prefers."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def press(self, *keys: str) -> None:
        """Press keys, by the code points that WebDriver has given them."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        keyboard = {"type": "key", "id": "keyboard", "actions": actions}
        self._call("POST", self._session + "/actions", {"actions": [keyboard]})

    # What a person sees

    def run(self, script: str, *arguments: object) -> Any:
        """Return what a script returns that runs in the page."""
        body = {"script": script, "args": arguments}
        return self._call("POST", self._session + "/execute/sync", body)

    def text(self, selector: str) -> str:
        """Return the visible text of the first element of a CSS selector, "" where there is none."""
        found: str = self.run(
            "return document.querySelector(arguments[0])?.innerText ?? ''", selector
        )
        return found

    def texts(self, selector: str) -> list[str]:
        """Return the visible texts of all elements of a CSS selector."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)",
            selector,
        )
        return found

    def picture(self, width: int, height: int) -> bytes:
        """Return the upper left of the page as a PNG, also what one would have to scroll to."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        wishes = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        return base64.b64decode(self.devtools("Page.captureScreenshot", wishes)["data"])

    # What a developer sees

    def complaints(self) -> list[str]:
        """Return what the console has said since the last call."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses of all that pages asked for since the last call, but for the browser's own first one."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
            and not event["params"]["documentURL"].startswith("chrome:")
        ]

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        """Give a command of the DevTools protocol."""
        body = {"cmd": command, "params": parameters}
        return self._call("POST", self._session + "/goog/cdp/execute", body)

    # The protocol

    def _log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("POST", self._session + "/se/log", {"type": kind})
        return found

    def _wishes(self) -> dict[str, Any]:
        profile = f"--user-data-dir={self._folder.name}/profile"
        wishes = {
            "browserName": "chrome",
            "goog:chromeOptions": {
                "binary": _chromium(),
                "args": [*_FLAGS, profile, "--window-size=1280,900"],
            },
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        return {"capabilities": {"alwaysMatch": wishes}}

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self._base + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=SLOW) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path}: {json.load(error)['value']['message']}") from None

    def _end(self) -> None:
        self._process.terminate()
        self._process.communicate()
        self._folder.cleanup()


def wait_text(browser: Browser, selector: str, part: str, ceiling: float = SLOW) -> str:
    """Return the text of an element, once a part is in it."""
    return wait_until(
        lambda: shown if part in (shown := browser.text(selector)) else "",
        lambda: f"{part!r} in {selector}, which shows {browser.text(selector)!r}",
        ceiling,
        poll=0.05,
    )


def _start_driver(folder: str) -> tuple[subprocess.Popen[bytes], int]:
    """Return chromedriver and its port; it ends where the port that it got for IPv4 is taken for IPv6."""
    told: list[bytes] = []
    for _ in range(5):
        # A session of its own: what it leaves behind is told from the programs of the tests.
        process = subprocess.Popen(
            [str(_driver()), "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the browser's chatter would fill a pipe that nobody reads
            cwd=folder,
            start_new_session=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line)
            if found := re.search(rb"started successfully on port (\d+)", line):
                return process, int(found[1])
        process.communicate()
    raise AssertionError(f"chromedriver ended and told no port: {b''.join(told)!r}")
