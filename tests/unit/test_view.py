"""What follows from two looks at a pool: rates, shares, latencies."""

from __future__ import annotations

from prefork.inspect.view import ProcessUsage, view
from prefork.workers.scoreboard import PoolField
from prefork.workers.slot_writer import Outcome
from prefork.workers.states import ExitKind
from tests.support.boards import SECOND, look_at, occupy, scoreboard, take_request

NOW = 1000 * SECOND
MS = SECOND // 1000


def test_rates_are_those_between_two_looks() -> None:
    """The rates of the pool and of each slot are those of the time between two looks."""
    with scoreboard(2, at=NOW) as board:
        first, second = occupy(board, 0, 11, at=NOW), occupy(board, 1, 12, at=NOW)
        first.account(Outcome.OK, MS)
        before = look_at(board, NOW)
        for _ in range(6):
            second.account(Outcome.OK, MS)
        first.account(Outcome.ERROR, MS)
        shown = view(before, look_at(board, NOW + 2 * SECOND))
    assert shown.rate == 3.5
    assert [one.rate for one in shown.rows] == [0.5, 3.0]
    assert [one.requests for one in shown.rows] == [2, 6]
    assert shown.total == 8
    assert shown.failed == [("error", 1)]


def test_first_look_has_no_rates() -> None:
    """The first look has no rates, and its latencies are those since the start."""
    with scoreboard(1, at=NOW) as board:
        occupy(board, 0, 11, at=NOW).account(Outcome.OK, 3 * MS)
        shown = view(None, look_at(board, NOW, _11=ProcessUsage(1.0, 4096)))
    assert shown.rate is None
    assert (shown.rows[0].rate, shown.rows[0].busy, shown.rows[0].cpu) == (None, None, None)
    assert shown.rows[0].memory == 4096
    assert shown.p50 == "3.8ms"


def test_idle_connections_are_those_of_the_lot() -> None:
    """A view has the counts of the lot with the rate of resumed connections, and none in a pool without a lot."""
    with scoreboard(1, at=NOW) as board:
        assert view(None, look_at(board, NOW)).parked is None
        board.set_pool(PoolField.LOT_STARTS, 1)
        board.set_pool(PoolField.PARKED, 5)
        before = look_at(board, NOW)
        board.count_pool(PoolField.RESUMED_TOTAL, 30)
        shown = view(before, look_at(board, NOW + 2 * SECOND))
        first = view(None, before)
    assert shown.parked is not None
    assert (shown.parked["now"], shown.resumed_rate) == (5, 15.0)
    assert first.resumed_rate is None


def test_latencies_are_those_between_two_looks() -> None:
    """Latencies are those of the requests between two looks, and missing where there are none."""
    with scoreboard(1, at=NOW) as board:
        worker = occupy(board, 0, 11, at=NOW)
        for _ in range(1000):
            worker.account(Outcome.OK, 4 * SECOND)
        before = look_at(board, NOW)
        idle = view(before, look_at(board, NOW + SECOND))
        for _ in range(99):
            worker.account(Outcome.OK, 60 * MS)
        worker.account(Outcome.OK, 20 * SECOND)
        shown = view(before, look_at(board, NOW + SECOND))
    assert (idle.p50, idle.p99) == ("-", "-")
    assert (shown.p50, shown.p99) == ("75ms", "100ms")


def test_long_request_counts_while_it_lasts() -> None:
    """A worker in one long request counts as busy during the request and not only at its end."""
    with scoreboard(2, at=NOW) as board:
        worker, other = occupy(board, 0, 11, at=NOW), occupy(board, 1, 12, at=NOW)
        take_request(worker, NOW - 60 * SECOND)
        before = look_at(board, NOW)
        during = look_at(board, NOW + SECOND)
        worker.account(Outcome.OK, 61 * SECOND + SECOND // 2)
        other.account(Outcome.OK, SECOND // 4)
        after = look_at(board, NOW + 2 * SECOND)
    assert view(before, during).rows[0].busy == 1.0
    shown = view(during, after)
    assert [one.busy for one in shown.rows] == [0.5, 0.25]
    assert shown.busy == 0.375
    assert shown.p99 == ">10s"


def test_new_worker_starts_its_cpu_anew() -> None:
    """The CPU time of a new worker is not compared with that of its predecessor."""
    with scoreboard(1, at=NOW) as board:
        occupy(board, 0, 11, at=NOW)
        before = look_at(board, NOW, _11=ProcessUsage(100.0))
        same = view(before, look_at(board, NOW + SECOND, _11=ProcessUsage(100.5)))
        board.vacate_slot(0, ExitKind.MAX_REQUESTS, NOW)
        occupy(board, 0, 12, at=NOW)
        shown = view(before, look_at(board, NOW + SECOND, _12=ProcessUsage(0.25)))
    assert same.rows[0].cpu == 0.5
    assert (shown.rows[0].pid, shown.rows[0].cpu) == (12, None)
    assert shown.rows[0].last_exit == "max_requests"
    assert shown.exits == [("max_requests", 1)]


def test_slots_that_never_had_a_worker_are_no_rows() -> None:
    """A slot that never had a worker has a letter and no row."""
    with scoreboard(4, at=NOW) as board:
        occupy(board, 2, 11, at=NOW)
        occupy(board, 3, 12, at=NOW)
        board.vacate_slot(3, ExitKind.KILLED, NOW)
        shown = view(None, look_at(board, NOW))
    assert [(one.slot, one.pid, one.last_exit) for one in shown.rows] == [
        (2, 11, None),
        (3, 0, "killed"),
    ]
    assert shown.scoreboard == ".._."
