"""A status as ``prefork status`` prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from prefork.inspect.status_text import as_lines
from prefork.master.saturation import publish_saturation
from prefork.metrics.description import CertificateDescription, PoolDescription
from prefork.metrics.status import status
from prefork.workers.answers import place_of
from prefork.workers.cancel import CancelReason
from prefork.workers.scoreboard import HandshakeKind, PoolField, SlotField
from prefork.workers.slot_writer import Outcome
from prefork.workers.states import ExitKind, SaturationCause
from tests.support.boards import SECOND, occupy, scoreboard, status_of_board, take_request

if TYPE_CHECKING:
    from prefork.workers.scoreboard import Scoreboard


NOW = 1000 * SECOND
MS = SECOND // 1000
WORD = st.integers(-(2**63), 2**63 - 1)


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
    for reason in (CancelReason.SOFT_TIMEOUT, CancelReason.SOFT_TIMEOUT, CancelReason.COMMAND):
        third.account(Outcome.cancelled(reason), 3 * MS)
    board.set_pool(PoolField.CEILING_REACHED, 2)
    board.set_pool(PoolField.CEILING, 4)
    board.set_pool(PoolField.USABLE_CPUS, 2)


def test_pool_that_cannot_keep_up_says_why_and_what_to_do() -> None:
    """While a pool is saturated, the status has the reason and the remedy below its head."""
    with scoreboard(2, master=4700, at=NOW) as board:
        occupy(board, 0, 4711, at=NOW)
        publish_saturation(board, SaturationCause.WORKERS_COMPUTE, 44.0)
        lines = as_lines(status_of_board(board, NOW), 80)
    assert lines[2:4] == [
        "saturated  for 44s; the workers compute: raise workers, or max_children with",
        "           min_spare, up to the number of CPUs",
    ]


def test_status_as_text() -> None:
    """The status has one line for each subject, and a table of the slots that have had a worker."""
    with scoreboard(5, name="shop", master=4700, at=NOW) as board:
        pool_at_work(board)
        lines = as_lines(status_of_board(board, NOW), 80)
    assert lines == [
        "prefork shop: serving, ready",
        "           pid 4700, up 60s, generation 0, 0.1.0, Python 3.11.7",
        "workers    1 busy, 2 idle (floor 5, target 5, max 4, 2 CPUs)",
        "slots      _B_ + 2 unused",
        "requests   100 ok, 1 error, 3 cancelled, 1 in progress, 1 slow",
        "latency    p50 3.8ms  p99 5.0ms  mean 9.7ms  since the start",
        "cancelled  2 soft timeout, 1 command",
        "queue      -  tcp://127.0.0.1:9000",
        "exits      1 max_requests",
        "events     ceiling reached: 2",
        "",
        "slot   pid  gen  state      age  requests  not ok   busy  spawns  last exit",
        "   0  4711    0  idle       10s        99       0  297ms       1  -",
        "   1  4712    0  busy 2.0s  10s         1       1  700ms       1  -",
        "   2  4720    0  idle       10s         4       3   12ms       2  max_requests",
    ]


def test_status_of_a_pool_without_workers() -> None:
    """Before the first worker there is no table, and after ten seconds without a tick the master hangs."""
    with scoreboard(3, at=NOW) as board:
        lines = as_lines(status_of_board(board, NOW + 12 * SECOND), 80)
    assert lines[0] == "prefork: HUNG for 12s (serving)"
    assert "slots      3 unused" in lines
    assert lines[-1] == "no worker yet"


@given(st.lists(WORD, min_size=64, max_size=64), st.integers(60, 200))
def test_status_of_whatever_a_worker_writes(words: list[int], width: int) -> None:
    """The status of a slot with random words consists of printable lines."""
    with scoreboard(3, at=NOW) as board:
        occupy(board, 0, 11, at=NOW)
        for field, word in enumerate(words):
            board.words[board.slot_at(1) + field] = word
        lines = as_lines(status_of_board(board, NOW), width)
    assert all(line.isprintable() for line in lines)


def test_large_pool_stays_within_the_terminal() -> None:
    """The letters of a thousand slots are wrapped to the width of the terminal."""
    with scoreboard(1000, at=NOW) as board:
        for slot in range(500):
            occupy(board, slot, slot + 1, at=NOW)
        lines = as_lines(status_of_board(board, NOW), 80)
    assert max(map(len, lines)) <= 80
    assert sum(line.count("_") for line in lines) == 500


def test_status_of_a_pool_that_answers_http() -> None:
    """The answers stand in one line, by the class of their status."""
    with scoreboard(2, at=NOW) as board:
        occupy(board, 0, 11, at=NOW)
        assert not any(
            line.startswith("responses") for line in as_lines(status_of_board(board, NOW), 80)
        )
        for method, code, count in (("GET", "200", 1234), ("POST", "201", 6), ("GET", "404", 2)):
            place = SlotField.ANSWERS + place_of(method, code)
            board.words[board.slot_at(1) + place] = count
        lines = as_lines(status_of_board(board, NOW), 80)
    assert [line for line in lines if "2xx" in line] == ["responses  1240 2xx, 0 3xx, 2 4xx, 0 5xx"]


def test_status_of_a_pool_with_tls() -> None:
    """The handshakes stand in one line, and each certificate with the day of its end."""
    described = PoolDescription(
        certificates=(
            CertificateDescription("/etc/a.pem", 1_800_000_000.0),
            CertificateDescription("b.pem", 1e300),
        )
    )
    with scoreboard(1, at=NOW) as board:
        occupy(board, 0, 11, at=NOW)
        for kind, count in zip(HandshakeKind, (1, 2, 3, 4), strict=True):
            board.words[board.slot_at(0) + SlotField.TLS_HANDSHAKES + kind] = count
        plain = as_lines(status(board.snapshot(), PoolDescription(), NOW), 80)
        lines = as_lines(status(board.snapshot(), described, NOW), 80)
    assert "tls        10 handshakes, 6 resumed, 0 failed" in plain
    at = lines.index("tls        10 handshakes, 6 resumed, 0 failed")
    assert lines[at + 1 : at + 3] == [
        "           /etc/a.pem until 2027-01-15",
        "           b.pem until -",
    ]
