"""Waiting for a pool: how long, and the line of progress on the terminal."""

from __future__ import annotations

import contextlib
import os

import pytest

from prefork.cli.commands.waiting import LONGEST_WAIT, ProgressLine, bar, seconds_of
from prefork.inspect.find import find_pool
from tests.support.boards import scoreboard


@pytest.mark.parametrize(
    ("done", "of", "text"),
    [
        (0, 4, "[--------------------] 0 of 4"),
        (1, 4, "[#####---------------] 1 of 4"),
        (4, 4, "[####################] 4 of 4"),
        (9, 4, "[####################] 9 of 4"),
        (-1, 4, "[--------------------] -1 of 4"),
        (0, 0, "[####################] 0 of 0"),
    ],
)
def test_bar(done: int, of: int, text: str) -> None:
    """A bar has the same length for all numbers."""
    assert bar(done, of) == text


def test_waiting_times_come_from_the_pool() -> None:
    """A timeout is the pool's own setting, or the default where the pool's description has no valid one."""
    with scoreboard() as board, find_pool(str(os.getpid())) as pool:
        assert seconds_of(pool, "boot_timeout") == 7.0
        assert seconds_of(pool, "graceful_timeout") == 25.0
        board.description.write('{"settings": {"boot_timeout": "soon", "graceful_timeout": "-"}}')
        assert seconds_of(pool, "boot_timeout") == 60.0
        assert seconds_of(pool, "graceful_timeout") == 25.0
        board.description.write('{"settings": {"graceful_timeout": "168h"}}')
        assert seconds_of(pool, "graceful_timeout") == LONGEST_WAIT


def shown_on_a_terminal(texts: list[str], **options: float) -> str:
    """Return what a terminal receives from a progress line with these texts."""
    reader, writer = os.openpty()
    try:
        with ProgressLine(writer, **options) as line:
            for text in texts:
                line.show(text)
    finally:
        os.close(writer)
    said = b""
    try:
        with contextlib.suppress(OSError):  # EIO is the end: nobody has the other side any more
            while block := os.read(reader, 4096):
                said += block
    finally:
        os.close(reader)
    return said.decode()


def test_progress_is_one_line_that_goes() -> None:
    """Each text replaces the previous one, is written once, and is erased at the end."""
    said = shown_on_a_terminal(["1 of 2", "1 of 2", "2 of 2"], hidden_for=0.0)
    assert said == "\r\x1b[K1 of 2\r\x1b[K2 of 2\r\x1b[K"


def test_quick_things_show_no_progress() -> None:
    """Progress that is over at once is not shown."""
    assert shown_on_a_terminal(["1 of 2"]) == ""


def test_progress_into_a_file_is_nothing() -> None:
    """Progress is not written to a pipe."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)
        with ProgressLine(writer, hidden_for=0.0) as line:
            line.show("1 of 2")
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
    finally:
        os.close(reader)
        os.close(writer)
