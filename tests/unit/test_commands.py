"""The pure parts of the commands for a running pool: what they read, decide and print."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.cli.commands.scale import is_settled, progress, wanted_size
from prefork.cli.commands.status import as_lines
from prefork.cli.commands.waiting import Progress, bar, seconds_of
from prefork.inspect.find import find_pool
from prefork.workers.scoreboard import Outcome, PoolField, SlotField
from prefork.workers.states import ExitKind, Order
from tests.support.boards import SECOND, occupy, scoreboard, status_of_board, take_request
from tests.support.waiting import let_pass

if TYPE_CHECKING:
    from prefork.workers.scoreboard import Scoreboard


NOW = 1000 * SECOND
MS = SECOND // 1000
WORD = st.integers(-(2**63), 2**63 - 1)


# --- status


def pool_at_work(board: Scoreboard) -> None:
    """Fill a board: a busy, an idle and a replaced worker."""
    first, second, third = (occupy(board, slot, 4711 + slot, at=NOW) for slot in range(3))
    for _ in range(99):
        first.account(Outcome.OK, 3 * MS)
    second.account(Outcome.ERROR, 700 * MS)
    third.account(Outcome.OK, 3 * MS)
    take_request(second, NOW - 2 * SECOND)
    board.vacate_slot(2, ExitKind.MAX_REQUESTS, NOW)
    occupy(board, 2, 4720, at=NOW)
    board.set_pool(PoolField.SLOW_REQUESTS, 1)
    board.set_pool(PoolField.CEILING_REACHED, 2)


def test_status_as_text() -> None:
    """All that a person asks first, one line a subject, and the slots that have had a worker as a table."""
    with scoreboard(5, name="shop", master=4700, at=NOW) as board:
        pool_at_work(board)
        lines = as_lines(status_of_board(board, NOW), 80)
    assert lines == [
        "prefork shop: serving, ready",
        "           pid 4700, up 60s, generation 0, 0.1.0, Python 3.11.7",
        "workers    1 busy, 2 idle (floor 5, target 5, max 5)",
        "slots      _B_ + 2 unused",
        "requests   100 ok, 1 error, 1 in progress, 1 slow",
        "latency    p50 3.8ms  p99 5.0ms  mean 9.9ms  since the start",
        "queue      -  tcp://127.0.0.1:9000",
        "exits      1 max_requests",
        "events     2 ceiling reached",
        "",
        "slot   pid  gen  state      age  requests  errors   busy  spawns  last exit",
        "   0  4711    0  idle       10s        99       0  297ms       1  -",
        "   1  4712    0  busy 2.0s  10s         1       1  700ms       1  -",
        "   2  4720    0  idle       10s         1       0  3.0ms       2  max_requests",
    ]


def test_status_of_a_pool_without_workers() -> None:
    """Before the first worker there is no table; after ten silent seconds the master is said to hang."""
    with scoreboard(3, at=NOW) as board:
        lines = as_lines(status_of_board(board, NOW + 12 * SECOND), 80)
    assert lines[0] == "prefork: HUNG for 12s (serving)"
    assert "slots      3 unused" in lines
    assert lines[-1] == "no worker yet"


@given(st.lists(WORD, min_size=64, max_size=64), st.integers(60, 200))
def test_status_of_whatever_a_worker_writes(words: list[int], width: int) -> None:
    """A slot of random words is shown, in printable lines."""
    with scoreboard(3, at=NOW) as board:
        occupy(board, 0, 11, at=NOW)
        for field, word in enumerate(words):
            board.words[board.slot_at(1) + field] = word
        lines = as_lines(status_of_board(board, NOW), width)
    assert all(line.isprintable() for line in lines)


def test_large_pool_stays_within_the_terminal() -> None:
    """The picture of a thousand slots is wrapped."""
    with scoreboard(1000, at=NOW) as board:
        for slot in range(500):
            occupy(board, slot, slot + 1, at=NOW)
        lines = as_lines(status_of_board(board, NOW), 80)
    assert max(map(len, lines)) <= 80
    assert sum(line.count("_") for line in lines) == 500


# --- scale


@pytest.mark.parametrize(
    ("size", "wanted"), [("4", 4), ("+1", 4), ("+7", 10), ("-2", 1), (" -1", 2), ("1", 1)]
)
def test_size_is_a_number_or_a_change(size: str, wanted: int) -> None:
    """Of three workers, of ten at the most."""
    assert wanted_size(size, 3, 10) == wanted


@pytest.mark.parametrize("size", ["0", "11", "+8", "-3", "-99"])
def test_size_beyond_the_bounds(size: str) -> None:
    """Refused with what the pool has and what it may have."""
    with pytest.raises(click.BadParameter, match=r"the pool has 3 and keeps from 1 to .* = 10"):
        wanted_size(size, 3, 10)


@pytest.mark.parametrize("size", ["", "x", "1.5", "+", "--1", "1..4", "٣", "9" * 5000])
def test_size_that_is_no_number(size: str) -> None:
    """Refused with what it may be."""
    with pytest.raises(click.BadParameter, match=r"is not N, \+N or -N"):
        wanted_size(size, 3, 10)


def test_scaled_is_who_has_the_workers_ready_and_none_too_many() -> None:
    """Starting ones are not there yet, leaving ones not gone; what load asks for beyond is no surplus."""
    with scoreboard(6, at=NOW) as board:
        board.set_pool(PoolField.TARGET, 3)
        occupy(board, 0, 11, at=NOW)
        occupy(board, 1, 12, at=NOW)
        board.prepare_slot(2, 0, NOW)
        board.words[board.slot_at(2) + SlotField.PID] = 13
        assert not is_settled(board.snapshot(), 3)
        assert progress(board.snapshot(), 3) == "[#############-------] 2 of 3 workers ready"
        occupy(board, 2, 13, at=NOW)
        assert is_settled(board.snapshot(), 3)
        occupy(board, 3, 14, at=NOW)
        board.give_order(3, Order.RETIRE)
        assert not is_settled(board.snapshot(), 3)
        assert progress(board.snapshot(), 3) == "1 workers finish their requests before they leave"
        board.set_pool(PoolField.TARGET, 4)
        assert is_settled(board.snapshot(), 3)


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
    """It has one length, whatever the numbers."""
    assert bar(done, of) == text


def test_waiting_times_come_from_the_pool() -> None:
    """Its own setting where it says one that can be, the default where it does not."""
    with scoreboard() as board, find_pool(str(os.getpid())) as pool:
        assert seconds_of(pool, "boot_timeout") == 7.0
        assert seconds_of(pool, "graceful_timeout") == 25.0
        board.set_about('{"settings": {"boot_timeout": ["7s"], "graceful_timeout": "-"}}')
        assert seconds_of(pool, "boot_timeout") == 60.0
        assert seconds_of(pool, "graceful_timeout") == 25.0


# --- progress


def shown_on_a_terminal(texts: list[str], *, seconds: float) -> str:
    """Return what a terminal gets of a progress that takes so long."""
    reader, writer = os.openpty()
    try:
        with Progress(writer) as line:
            let_pass(seconds)
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
    """Each text replaces the one before, the same is not written twice, and nothing is left of it."""
    said = shown_on_a_terminal(["1 of 2", "1 of 2", "2 of 2"], seconds=0.35)
    assert said == "\r\x1b[K1 of 2\r\x1b[K2 of 2\r\x1b[K"


def test_quick_things_show_no_progress() -> None:
    """What is done within a moment does not flicker."""
    assert shown_on_a_terminal(["1 of 2"], seconds=0) == ""


def test_progress_into_a_file_is_nothing() -> None:
    """Logs of cron jobs and scripts get the outcome only."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)
        with Progress(writer) as line:
            let_pass(0.35)
            line.show("1 of 2")
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
    finally:
        os.close(reader)
        os.close(writer)
