"""Accounts: which worker has one, when the master is called, and what the access log gets."""

from __future__ import annotations

import socket
import socketserver
import threading
from typing import TYPE_CHECKING, Any

import pytest

from prefork.workers.answers import Answer
from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField, SlotSnapshot
from prefork.workers.settings import Settings
from prefork.workers.slot_writer import Outcome, SlotWriter
from prefork.workers.states import Rejection
from prefork.workers.waits import QueueWaits
from prefork.workers.worker.access import access_log_for
from prefork.workers.worker.accounting import (
    BecameBusy,
    OneAtATime,
    OneJudged,
    Overlapping,
    account_for,
    busy_call,
)
from prefork.workers.worker.turn import AT_ONCE_NS

if TYPE_CHECKING:
    from collections.abc import Iterator


class Slot:
    """A slot with its pen, a master that counts its calls, and a source that says what was asked of it."""

    waits: Any = None
    listener: Any = "tcp://here:1"

    def __init__(self) -> None:
        self.board = Scoreboard.create(1)
        self.writer = SlotWriter(self.board, 0)
        self.called = 0
        self.busy_when_called = False
        self.lines: list[tuple[Any, ...]] = []

    def call_master(self) -> None:
        """Count a call of the master."""
        self.called += 1
        self.busy_when_called = self.writer.words[SlotField.REQUEST_NS] != 0

    def write(self, *line: Any) -> None:
        """Take a line of the access log."""
        self.lines.append(line)

    def became_busy(self, **settings: Any) -> BecameBusy | None:
        """Return what reports to the master."""
        return busy_call(Settings(workers=1, **settings), self.board, self.call_master)

    @property
    def seen(self) -> SlotSnapshot:
        """Read the slot."""
        return self.board.snapshot().slots[0]


@pytest.fixture
def slot() -> Iterator[Slot]:
    """Give a slot."""
    made = Slot()
    yield made
    made.writer.detach()
    made.board.close()


# --- who has an account


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, False),
        ({"min_spare": 1}, True),
        ({"metrics": "127.0.0.1:0"}, False),
        ({"access_log": "text"}, True),
        ({"max_requests": 5, "client_timeout": 3, "request_timeout": 3}, False),
    ],
)
def test_requests_pay_for_what_was_asked_for(
    slot: Slot, settings: dict[str, Any], wanted: bool
) -> None:
    """Without spares and without an access log no account hears of a request."""
    log = access_log_for(Settings(workers=1, **settings), 0, 0, slot.writer)
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        found = account_for([server], slot.writer, slot.became_busy(**settings), log)
    assert (found is not None) is wanted


# --- calling the master


def test_master_hears_of_one_that_leaves_the_idle(slot: Slot) -> None:
    """While the master watches, a request that the worker had waited for wakes it, once the slot says busy."""
    account = OneAtATime(slot.writer, slot.became_busy(min_spare=1))
    slot.board.set_pool(PoolField.WATCH, 1)
    account.taken("request", 10**9, "client", slot)  # type: ignore[arg-type]
    assert (slot.called, slot.busy_when_called) == (1, True)
    ended = account.returned("request", Outcome.OK)
    account.taken("next", ended, "client", slot)  # type: ignore[arg-type]
    assert slot.called == 1  # the next one was queued: the worker was never idle
    ended = account.returned("next", Outcome.OK)
    account.taken("later", ended + AT_ONCE_NS, "client", slot)  # type: ignore[arg-type]
    assert slot.called == 2


def test_master_is_left_alone(slot: Slot) -> None:
    """While the master does not watch, because enough workers are idle, no request wakes it."""
    account = OneAtATime(slot.writer, slot.became_busy(min_spare=1), slot.write)
    slot.board.set_pool(PoolField.WATCH, 0)
    account.taken("request", 10**9, "client", slot)  # type: ignore[arg-type]
    assert slot.called == 0


def test_pool_without_spares_never_calls(slot: Slot) -> None:
    """Without min_spare nothing reports to the master that a worker has become busy."""
    assert slot.became_busy() is None


def test_worker_with_threads_leaves_the_idle_once(slot: Slot) -> None:
    """A worker that serves with threads is idle when it has no request in hand, not between two takes."""
    overlapping = Overlapping(slot.writer, slot.became_busy(min_spare=1))
    slot.board.set_pool(PoolField.WATCH, 1)
    first, second = object(), object()
    overlapping.taken(first, 10**9, "client", slot)  # type: ignore[arg-type]
    overlapping.taken(second, 2 * 10**9, "client", slot)  # type: ignore[arg-type]
    assert slot.called == 1
    for request in (first, second):
        overlapping.returned(request, Outcome.ERROR)
    third = object()
    overlapping.taken(third, 10**18, "client", slot)  # type: ignore[arg-type]
    assert slot.called == 2


# --- what the access log gets


def test_measured_wait_is_logged(slot: Slot) -> None:
    """The line has the wait of its own request, and none where that is not known."""
    account = OneAtATime(slot.writer, log_request=slot.write)
    slot.waits = QueueWaits(slot.writer)
    for waited in (4_000_000, None):
        slot.waits.note(waited)
        account.taken("request", 1, "client", slot)  # type: ignore[arg-type]
        account.returned("request", Outcome.OK)
    assert [line[2] for line in slot.lines] == [4_000_000, None]


@pytest.mark.parametrize("outcome", Outcome)
def test_end_is_logged(slot: Slot, outcome: Outcome) -> None:
    """The line has listener, client, outcome and the duration that the scoreboard has."""
    account = OneAtATime(slot.writer, log_request=slot.write)
    account.taken("request", 1, "client", slot)  # type: ignore[arg-type]
    account.returned("request", outcome)
    (line,) = slot.lines
    assert line == ("tcp://here:1", "client", None, outcome, slot.seen[SlotField.BUSY_NS], None)


def test_answer_is_logged_with_its_own_request(slot: Slot) -> None:
    """What a handler reports of its answer stands in the line of that request, and in no other one."""
    account = OneAtATime(slot.writer, log_request=slot.write)
    account.taken("request", 1, "client", slot)  # type: ignore[arg-type]
    for status in ("200", "404"):
        account.note_answer(Answer(status=status))
        account.next_on_connection("request", 2, 3)
    account.returned("request", Outcome.OK)
    assert [line[5] and line[5].status for line in slot.lines] == ["200", "404", None]


def test_refused_request_is_rejected(slot: Slot) -> None:
    """A request that its handler refuses counts as rejected for that reason, and so does the next one only if refused."""

    class Handler(socketserver.BaseRequestHandler):
        reports_answers = True

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        account = account_for([server], slot.writer)
    assert isinstance(account, OneJudged)
    for refuses in (True, False):
        account.taken("request", 1, "client", slot)  # type: ignore[arg-type]
        if refuses:
            account.refuse(Rejection.REQUEST)
        account.returned("request", Outcome.OK)
    assert slot.seen[SlotField.REJECTED] == 1
    assert slot.seen.ok == 1
    assert slot.seen.rejections[Rejection.REQUEST] == 1


def test_end_in_a_thread_is_logged(slot: Slot) -> None:
    """A request that a thread finishes has its line when it is over, with what was known at its beginning."""

    class Threading(socketserver.ThreadingMixIn, socketserver.TCPServer):
        pass

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            account.note_answer(Answer(status="200"))
            account.refuse(Rejection.REQUEST)
            self.request.recv(1)

    slot.waits = QueueWaits(slot.writer)
    slot.waits.note(77)
    with Threading(("127.0.0.1", 0), Handler) as server:
        account = account_for([server], slot.writer, log_request=slot.write)
        assert isinstance(account, Overlapping)
        account.watch(server)
        client, request = socket.socketpair()
        with client, request:
            account.taken(request, 1, "client", slot)  # type: ignore[arg-type]
            server.process_request(request, "client")  # type: ignore[arg-type]
            account.returned(request, Outcome.OK)
            assert slot.lines == []
            client.send(b"x")
            account.wait_finished()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    (line,) = slot.lines
    assert line[:4] == ("tcp://here:1", "client", 77, Outcome.REJECTED)
    assert line[5] == Answer(status="200")
    assert account._served_by == account._answers == {}
    assert account._seen == {}
