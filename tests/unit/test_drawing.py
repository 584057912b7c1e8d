"""The screen of ``prefork top`` without a terminal: the layout, and what is left out on a small one."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from prefork.inspect.columns import SortOrder
from prefork.inspect.drawing import drawing, fitting, sparkline
from prefork.inspect.view import view
from prefork.master.saturation import publish_saturation
from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField
from prefork.workers.slot_writer import Outcome
from prefork.workers.states import ExitCause, ExitKind, Phase, SaturationCause, StartReason
from prefork.workers.states import Order as Asked
from tests.support.boards import SECOND, look_at, occupy, scoreboard, slot_row, take_request

if TYPE_CHECKING:
    from collections.abc import Sequence


NOW = 1000 * SECOND
MS = SECOND // 1000
WORD = st.integers(-(2**63), 2**63 - 1)
SPARKS = " 12345678"


def lines_of(
    board: Scoreboard, width: int, height: int, *, at: int = NOW, **more: Any
) -> list[str]:
    """Return the lines that a terminal of this size shows of a board."""
    return drawn(view(None, look_at(board, at)), width, height, **more)


def drawn(
    shown: Any, width: int, height: int, order: SortOrder | None = None, **more: Any
) -> list[str]:
    """Return the lines that a terminal of this size shows of a view."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None, legacy_windows=False)
    console.print(drawing(shown, order or SortOrder(), [1.0, 2.0], width, height, **more))
    return out.getvalue().splitlines()


def busy_board(board: Scoreboard) -> None:
    """Fill a board with a pool in all its states."""
    for slot in range(6):
        worker = occupy(board, slot, 1_000_000 + slot, at=NOW)
        for _ in range(12_345 if slot == 0 else 7):
            worker.account(Outcome.OK, 7 * MS)
        if slot in (1, 2):
            take_request(worker, NOW - slot * SECOND)
    board.give_order(4, Asked.RETIRE)
    board.vacate_slot(5, ExitKind.REQUEST_TIMEOUT, NOW)
    board.prepare_slot(5, 1, NOW)
    board.occupy_slot(5, 1_000_009, StartReason.RESPAWNED)
    board.set_pool(PoolField.CEILING_REACHED, 3)
    board.set_pool(PoolField.CEILING, 8)
    board.set_pool(PoolField.USABLE_CPUS, 2)


def test_pool_that_cannot_keep_up_says_why() -> None:
    """While a pool is saturated, the reason and the whole remedy stand below the title."""
    with scoreboard(4, at=NOW) as board:
        occupy(board, 0, 1_000_000, at=NOW)
        publish_saturation(board, SaturationCause.WORKERS_WAIT, 44.0)
        narrow, wide = lines_of(board, 80, 24), lines_of(board, 200, 24)
    assert narrow[1].startswith("full   for 44s, the workers wait, within requests or for ")
    assert narrow[3].endswith("(ParkingMixIn)")
    assert narrow[4].startswith("rate ")
    assert max(map(len, narrow)) <= 80
    assert wide[2].strip() == "(ParkingMixIn)"


@pytest.mark.parametrize(("name", "end"), [("x" * 35, "up 60s"), ("x" * 45, "pid 4711")])
def test_title_keeps_what_fits(name: str, end: str) -> None:
    """Where the title is long, the generation gives way first and the pid last."""
    with scoreboard(4, master=4711, name=name, at=NOW) as board:
        occupy(board, 0, 1_000_000, at=NOW)
        title = lines_of(board, 80, 24)[0]
    assert len(title) == 80
    assert title.endswith(end)


def test_screen_of_80_columns() -> None:
    """In 80 columns nothing is cut off, and the keys stand in the last line."""
    with scoreboard(10, name="shop", at=NOW) as board:
        busy_board(board)
        lines = lines_of(board, 80, 24)
    screen = "\n".join(lines)
    assert len(lines) == 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("prefork shop serving, ready ")
    assert "pid " in lines[0]
    assert "up 60s" in lines[0]
    assert "p50 7.5ms" in lines[1]
    assert "in hand 2" in lines[1]
    assert "2 busy of 4 ready, target 10, max 8, 2 CPUs" in lines[2]
    assert lines[3] == "queue  -            tcp://127.0.0.1:9000"
    assert lines[4].startswith("slots  _BB_RS + 4 unused   ")
    assert lines[4].endswith("  _ idle  B busy  S starting  R retiring  . gone")
    headings = lines[6].split()
    assert headings == [
        *[
            "slot",
            "pid",
            "gen",
            "state",
            "age",
            "reqs",
            "req/s",
            "busy",
            "cpu",
            "mem",
            "spawns",
            "last",
            "exit",
        ]
    ]
    assert lines[7].split() == ["0", "1000000", "0", "_", "10s", "12.3k", *"----", "1", "-"]
    assert lines[12].split()[-2:] == ["2", "request_timeout"]
    assert "B 2.0s" in screen
    assert "1 request_timeout" in screen
    assert "events 3 ceiling reached" in screen
    assert lines[-1].startswith("q quit ")
    assert "…" not in screen


def test_idle_connections_have_a_line() -> None:
    """A pool that parks has a line that says how many connections are idle, and which were closed for what."""
    with scoreboard(4, at=NOW) as board:
        occupy(board, 0, 1, at=NOW)
        without = lines_of(board, 80, 24)
        board.set_pool(PoolField.LOT_STARTS, 1)
        board.set_pool(PoolField.PARKED, 12_345)
        board.set_pool(PoolField.PARKED_EVICTED, 3)
        lines = lines_of(board, 80, 24)
    assert lines[4] == "parked 12.3k idle connections, - resumed/s, 3 evicted"
    assert [*lines[:4], *lines[5:7]] == without[:6]
    assert len(lines) == 24


def test_meaning_of_the_letters_gives_way() -> None:
    """Where the slots need the line, the meaning of the letters is left out, and nothing else is."""
    with scoreboard(40, at=NOW) as board:
        for slot in range(40):
            occupy(board, slot, slot + 1, at=NOW)
        assert lines_of(board, 80, 24)[4] == "slots  " + "_" * 40
        assert lines_of(board, 100, 24)[4].endswith(" . gone")


def test_hung_master_is_told_first() -> None:
    """The first line says that the master hangs."""
    with scoreboard(2, at=NOW) as board:
        occupy(board, 0, 11, at=NOW)
        lines = lines_of(board, 80, 24, at=NOW + 34 * SECOND)
    assert lines[0].startswith("prefork HUNG for 34s (serving)")


def test_stopping_pool() -> None:
    """The first line shows the phase of a pool that stops."""
    with scoreboard(2, at=NOW) as board:
        board.set_pool(PoolField.PHASE, Phase.DRAINING)
        assert lines_of(board, 80, 24)[0].startswith("prefork draining ")


@pytest.mark.parametrize("width", [20, 40, 80, 100, 200])
@pytest.mark.parametrize("height", [8, 12, 24, 70])
def test_screen_of_any_size(width: int, height: int) -> None:
    """On a terminal of any size no line wraps, the keys are visible, and missing slots are counted."""
    with scoreboard(100, name="shop", at=NOW) as board:
        for slot in range(50):
            occupy(board, slot, slot + 1, at=NOW)
        lines = lines_of(board, width, height)
    assert max(map(len, lines)) <= width
    if height >= 12:
        assert len(lines) == height
        assert lines[-1].startswith("q quit ")
        missing = [line for line in lines if line.startswith("and ")]
        assert (len(missing) == 1) is (height < 70)


def test_terminal_without_unicode() -> None:
    """A terminal without Unicode gets bars and sparkline in ASCII."""
    with scoreboard(2, name="shop", at=NOW) as board:
        busy = occupy(board, 0, 11, at=NOW)
        take_request(busy, NOW - SECOND)
        lines = lines_of(board, 80, 24, ascii_only=True)
    assert "\n".join(lines).isascii()
    assert "busy   ####################" in lines[2]


def test_words_of_a_worker_do_not_steer_the_terminal() -> None:
    """Control characters in a name are escaped."""
    with scoreboard(2, name="\x1b[2Jshop\n", at=NOW) as board:
        lines = lines_of(board, 80, 24)
    assert "\x1b" not in "".join(lines)
    assert lines[0].startswith("prefork \\x1b[2Jshop\\n ")


def test_last_exits_have_room() -> None:
    """The longest name of an exit fits into 80 columns together with the largest pid."""
    with scoreboard(1, at=NOW) as board:
        for _ in range(10):  # two digits, as most pools have
            occupy(board, 0, 2**22, at=NOW)
        for kind in ExitKind:
            board.vacate_slot(0, kind, NOW)
            occupy(board, 0, 2**22, at=NOW)
            spawns = board.words[board.slot_at(0) + SlotField.SPAWNS]
            assert any(
                line.rstrip().endswith(f"{spawns} {ExitCause(kind)}")
                for line in lines_of(board, 80, 24)
            )


@given(st.lists(WORD, min_size=64, max_size=64), st.lists(WORD, min_size=64, max_size=64))
def test_whatever_a_worker_writes(first: list[int], second: list[int]) -> None:
    """For random words of a slot at both looks, no rate is negative and the screen keeps its size."""
    with scoreboard(2, at=NOW) as board:
        looks = []
        for at, words in enumerate((first, second)):
            for field, word in enumerate(words):
                board.words[board.slot_at(1) + field] = word
            looks.append(look_at(board, NOW + at * SECOND))
        shown = view(*looks)
        lines = drawn(shown, 80, 24)
    assert shown.rate is not None
    assert shown.rate >= 0
    assert all(one.rate is None or one.rate >= 0 for one in shown.rows)
    assert 0 <= shown.busy <= 1
    assert len(lines) == 24
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("room", "kept", "missing"), [(5, 4, 0), (4, 4, 0), (3, 2, 2), (1, 0, 4), (0, 0, 4), (-3, 0, 4)]
)
def test_rows_that_do_not_fit_are_counted(room: int, kept: int, missing: int) -> None:
    """Rows that do not fit are counted, and one line is kept for their number."""
    rows, left = fitting([slot_row(slot=slot) for slot in range(4)], room)
    assert (len(rows), left) == (kept, missing)


@pytest.mark.parametrize(
    ("numbers", "width", "line"),
    [
        ([], 5, ""),
        ([0, 0], 5, "  "),
        ([0, 1, 2, 4, 8], 5, " 1248"),
        ([1000, 1], 5, "81"),
        ([1, 2, 3, 4, 5, 6], 3, "578"),
        ([1, 2], 0, ""),
    ],
)
def test_sparkline(numbers: Sequence[float], width: int, line: str) -> None:
    """A sparkline shows the latest numbers, the largest at full height and each nonzero one above the ground."""
    assert sparkline(numbers, width, SPARKS) == line
