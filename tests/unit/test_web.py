"""Reading requests and writing answers, with bytes of every kind, and the verdicts on invented pools."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from prefork.metrics.exporter import live_verdict, ready_verdict
from prefork.metrics.web import LONGEST_HEAD, RefusedError, Response, head_of, parse, rendered
from prefork.workers.scoreboard import PoolField, Scoreboard
from prefork.workers.states import Phase, StartReason, WorkerState
from tests.support.web import parsed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefork.workers.scoreboard import Snapshot

LINES = st.lists(
    st.sampled_from(
        [
            b"GET / HTTP/1.1",
            b"HEAD /metrics?name[]=a%00&b HTTP/1.0",
            b"Accept: a",
            b" x",
            b":",
            b"\r",
        ]
    )
    | st.binary(max_size=30),
    max_size=8,
)


@given(LINES, st.sampled_from([b"\r\n", b"\n", b"\r"]), st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(lines: list[bytes], end: bytes, tail: bytes) -> None:
    """Whatever comes is a request, is no whole head yet, or is refused; nothing else is raised."""
    received = end.join(lines) + end + end + tail
    refusal, request = None, None
    try:
        head = head_of(received)
        request = None if head is None else parse(head)
    except RefusedError as refused:
        refusal = refused.response
    if refusal is not None:
        assert refusal.status in (400, 405, 431)
        assert parsed(rendered(refusal)).status == refusal.status
    assert request is None or request.method in ("GET", "HEAD")


@given(st.integers(0, LONGEST_HEAD + 20), st.sampled_from([b"\r\n\r\n", b"\n\n"]))
def test_head_has_one_bound(length: int, end: bytes) -> None:
    """A head up to the bound is taken, a longer one refused, however many bytes come at once."""
    received = b"G" * length + end + b"x" * 100
    if length <= LONGEST_HEAD:
        assert head_of(received) == b"G" * length
    else:
        with pytest.raises(RefusedError, match="Too Large"):
            head_of(received)


def test_head_arrives_in_pieces() -> None:
    """The same bytes give the same head at whatever moment they have come."""
    whole = b"GET /livez HTTP/1.1\r\nA: b\r\n\r\n"
    found = [head_of(whole[:size]) for size in range(len(whole) + 1)]
    assert found == [None] * len(whole) + [whole[:-4]]


def test_headers_that_come_twice_are_joined() -> None:
    """Names are told apart without their case, and values of one name belong together."""
    request = parse(b"GET /a%20b?n[]=1&n[]=2 HTTP/1.1\r\nAccept: a\r\nACCEPT:b \r\nX:")
    assert request.path == "/a b"
    assert request.query == {"n[]": ["1", "2"]}
    assert request.headers == {"accept": "a,b", "x": ""}


def test_answer_without_body_has_its_length() -> None:
    """What HEAD gets differs from what GET gets by the body alone."""
    response = Response(b"12345", status=HTTPStatus.OK)
    whole, head = rendered(response), rendered(response, body=False)
    assert whole.partition(b"\r\n\r\n")[2] == b"12345"
    assert head.endswith(b"\r\n\r\n")
    assert b"Content-Length: 5\r\n" in head


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """Return a scoreboard with one worker that is idle and needed."""
    made = Scoreboard.create(2)
    made.prepare_slot(0, 0, 1)
    made.occupy_slot(0, 4711, StartReason.STARTED)
    made.words[made.slot_at(0) + 16] = WorkerState.IDLE
    made.set_pool(PoolField.NEEDED, 1)
    made.set_pool(PoolField.TICK_NS, 50_000_000_000)
    yield made
    made.close()


def changed(snapshot: Snapshot, field: PoolField, value: int) -> Snapshot:
    """Return the snapshot with another word."""
    words = list(snapshot.words)
    words[field] = value
    return replace(snapshot, words=tuple(words))


def test_master_lives_for_ten_seconds_after_a_tick(board: Scoreboard) -> None:
    """A master that has ticked within the last ten seconds is live; after that it hangs."""
    snapshot = board.snapshot()
    assert live_verdict(snapshot, 60_000_000_000).status == 200
    late = live_verdict(snapshot, 61_000_000_000)
    assert (late.status, late.body) == (503, b"the master has not ticked for 11 s\n")


def test_pool_is_ready_with_enough_workers_while_it_serves(board: Scoreboard) -> None:
    """Ready means: it serves, and as many workers are ready and stay as are needed."""
    snapshot = board.snapshot()
    assert ready_verdict(snapshot).status == 200
    assert ready_verdict(changed(snapshot, PoolField.NEEDED, 2)).status == 503
    assert ready_verdict(changed(snapshot, PoolField.NEEDED, 0)).status == 503
    closed = ready_verdict(changed(snapshot, PoolField.LISTENERS_CLOSED, 1))
    assert closed.status == 503
    assert closed.body.endswith(b" listeners_closed=1\n")
    for phase in set(Phase) - {Phase.SERVING}:
        assert ready_verdict(changed(snapshot, PoolField.PHASE, phase)).status == 503
    board.vacate_slot(0, next(iter(board.snapshot().exits)), 1)
    assert ready_verdict(board.snapshot()).status == 503
