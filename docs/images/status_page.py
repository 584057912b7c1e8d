"""Take the picture of the status page: ``python -m docs.images.status_page``, from the root.

A pool is under load that comes and goes, for a minute and a half. Needs Chromium and its driver
(Debian: chromium, chromium-driver). Each picture is another one: nothing compares them.
"""
# ruff: noqa: INP001 - a folder of pictures, not a package

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.support.browser import Browser, wait_text, why_no_browser
from tests.support.clients import Address, ask
from tests.support.server import Program
from tests.support.web import metrics_of

PICTURE = Path(__file__).with_name("status-page.png")
WIDTH, MOST_HEIGHT = 1040, 1000
SPAN = 90.0
"""Seconds of load."""

CLIENTS = 14

POOL = """
from tests.support.app import *
import prefork

class Wait(prefork.StreamRequestHandler):
    def handle(self):
        seconds = float(self.rfile.readline())
        time.sleep(seconds)
        self.wfile.write(b"done")

serve(
    Wait, pool_name="thumbnails", workers=6, max_children=16, min_spare=2, max_spare=5,
    metrics_address="127.0.0.1:0", max_requests=800, graceful_timeout=5,
)
"""

DURATIONS = (0.004, 0.012, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.11, 0.2, 0.35, 0.9)
"""Seconds of one request after the other, as a service has them: most are short."""


def main() -> None:
    """Load a pool, look at its page, write the picture."""
    if reason := why_no_browser():
        sys.exit(f"status_page.py: {reason}")
    with tempfile.TemporaryDirectory() as folder, Program(POOL, Path(folder)) as program:
        address = program.address()
        metrics = metrics_of(program).address
        with Browser() as browser:
            browser.show(WIDTH, MOST_HEIGHT)
            browser.open(f"http://{metrics[0]}:{metrics[1]}/")
            wait_text(browser, "#phase", "Ready")
            load(address, program)
            PICTURE.write_bytes(browser.picture(WIDTH, height(browser)))


def height(browser: Browser) -> int:
    """Return where the part ends that fits into a picture: below the exits."""
    script = (
        "return document.getElementById('exits-title').parentElement.getBoundingClientRect().bottom"
    )
    return min(MOST_HEIGHT, math.ceil(float(browser.run(script))) + 12)


def load(address: Address, program: Program) -> None:
    """Be a varying number of clients, one of them patient, and once an unlucky worker's end."""
    began = time.monotonic()
    for number in range(CLIENTS):
        threading.Thread(target=be_client, args=(address, number, began), daemon=True).start()
    time.sleep(SPAN / 2)
    os.kill(program.worker(), signal.SIGKILL)
    time.sleep(SPAN / 2 - 6)
    # Still under way when the picture is taken: the grid says for how long.
    threading.Thread(target=ask, args=(address, "9", 30.0), daemon=True).start()
    time.sleep(5)


def be_client(address: Address, number: int, began: float) -> None:
    """Ask again and again while there are this many clients."""
    for turn in itertools.count(number):
        passed = time.monotonic() - began
        if passed >= SPAN:
            return
        if number >= wanted(passed):
            time.sleep(0.05)
            continue
        with contextlib.suppress(OSError):  # that was the unlucky worker
            ask(address, str(DURATIONS[turn * 7 % len(DURATIONS)]))


def wanted(passed: float) -> float:
    """Return how many clients there are after this many seconds."""
    wave = (1 - math.cos(2 * math.pi * passed / 55)) / 2
    return 2 + (CLIENTS - 3) * wave + math.sin(passed)


if __name__ == "__main__":
    main()
