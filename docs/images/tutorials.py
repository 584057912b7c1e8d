"""Take the pictures of the tutorials: ``python -m docs.images.tutorials``, from the root.

Each tutorial is done up to its first look at ``prefork top``. Half a minute later, while the load goes on,
the status page and the terminal are taken. Needs Chromium and its driver (Debian: chromium,
chromium-driver), and the ports that the tutorials have. Each picture is another one: nothing compares
them.
"""
# ruff: noqa: INP001 - a folder of pictures, not a package

from __future__ import annotations

import io
import math
import re
import shlex
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from tests.support.browser import Browser, wait_text, why_no_browser
from tests.support.terminal import Terminal
from tests.support.tutorials import Reader
from tests.support.waiting import wait_until

IMAGES = Path(__file__).parent
PAGES = {"TUTORIAL.md": "tutorial", "TUTORIAL-WSGI.md": "tutorial-wsgi"}
METRICS = "http://127.0.0.1:9100/"
SPAN = 35.0
"""Seconds of load."""

WIDTH, MOST_HEIGHT = 1040, 1000
TERMINAL = (88, 13)
"""Columns and lines."""

COLOURS = TerminalTheme(
    (31, 41, 51),
    (228, 231, 235),
    [
        *((74, 85, 104), (224, 108, 117), (126, 200, 140), (230, 190, 110)),
        *((110, 170, 230), (200, 140, 220), (100, 200, 200), (228, 231, 235)),
    ],
)

SCREEN = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    """Do the tutorials, and write their pictures."""
    if reason := why_no_browser():
        sys.exit(f"tutorials.py: {reason}")
    for page, name in PAGES.items():
        text = (IMAGES.parent / page).read_text(encoding="utf-8")
        with (
            tempfile.TemporaryDirectory() as folder,
            Reader(text, Path(folder), "", {}) as reader,
            Browser() as browser,
        ):
            command = do_until_top(reader)
            take_page(browser, IMAGES / f"{name}-page.png")
            if f"{name}-top.svg" in text:
                take_terminal(command, Path(folder), IMAGES / f"{name}-top.svg")


def do_until_top(reader: Reader) -> str:
    """Do the tutorial up to its look at ``prefork top``, and return that command."""
    for block in reader.blocks:
        if block.verb == "watches":
            return block.text.strip().removeprefix("$ ")
        reader.do(block)
    raise ValueError("a tutorial has no look at prefork top")


def take_page(browser: Browser, picture: Path) -> None:
    """Take the status page after a while of load, down to its charts."""
    browser.show(WIDTH, MOST_HEIGHT)
    browser.open(METRICS)
    wait_text(browser, "#phase", "Ready")
    time.sleep(SPAN)
    script = "return document.getElementById('latency-plot').parentElement.getBoundingClientRect().bottom"
    height = min(MOST_HEIGHT, math.ceil(float(browser.run(script))) + 12)
    picture.write_bytes(browser.picture(WIDTH, height))


def take_terminal(command: str, folder: Path, picture: Path) -> None:
    """Take the screen of ``prefork top`` after a few looks."""
    _, *arguments = shlex.split(command)
    columns, lines = TERMINAL
    with Terminal(arguments, folder, TERMINAL) as terminal:
        terminal.wait_shown("saturated")
        end = time.monotonic() + 12
        while time.monotonic() < end:
            terminal.wait_shown("saturated")  # reads, so that the command is not held up
            time.sleep(0.1)
        screen = wait_until(lambda: whole_screen(terminal), "a whole screen")
        terminal.press("q")
        terminal.wait()
    console = Console(record=True, width=columns, height=lines, file=io.StringIO())
    console.print(Text.from_ansi(re.sub(r"\x1b\[[0-9;?]*[A-ln-z]", "", screen).rstrip()))
    text = console.export_svg(title=command, theme=COLOURS, code_format=SCREEN, unique_id="top")
    picture.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def whole_screen(terminal: Terminal) -> str:
    """Return what was drawn last, colours included, once its last line is there."""
    screen = terminal.said.rpartition("\x1b[H")[2].replace("\r", "")
    return screen if "q quit" in screen else ""


if __name__ == "__main__":
    main()
