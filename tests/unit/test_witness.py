"""What is done for a request beyond the scoreboard's words: who is woken, what is measured, what is told at its end."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from prefork.workers.identity import WorkerInfo
from prefork.workers.scoreboard import (
    Outcome,
    PoolField,
    Scoreboard,
    SlotField,
    SlotSnapshot,
    SlotWriter,
)
from prefork.workers.settings import LONGEST, Settings
from prefork.workers.waits import QueueWaits
from prefork.workers.worker.accounting import AT_ONCE_NS, OneAtATime, Overlapping, account_for
from prefork.workers.worker.side import ThisWorker
from prefork.workers.worker.turn import Turn
from prefork.workers.worker.witness import Witness, witness_for

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = 86_400.0


class Slot:
    """A slot with its pen, a master that counts its calls, and a source that says what was asked of it."""

    waits: Any = None
    listener: Any = "tcp://here:1"

    def __init__(self) -> None:
        self.board = Scoreboard.create(1)
        self.writer = SlotWriter(self.board, 0)
        self.watch = self.board.watch_words()
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

    def witness(self, *, spares: bool = False, log: bool = False) -> Witness:
        """Make a witness that writes here."""
        watch = self.watch if spares else None
        return Witness(watch, self.call_master, self if log else None)  # type: ignore[arg-type]

    @property
    def seen(self) -> SlotSnapshot:
        """Read the slot."""
        return self.board.snapshot().slots[0]


@pytest.fixture
def slot() -> Iterator[Slot]:
    """Give a slot."""
    made = Slot()
    yield made
    made.watch.release()
    made.writer.detach()
    made.board.close()


def source_of(server: Any) -> Any:
    """Return as much of a source as an account needs."""
    return SimpleNamespace(server=server, settle_steps=bool)


# --- whether there is one


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
    """Without spares and access log there is no witness, and the loop has nobody to tell."""
    found = witness_for(Settings(workers=1, **settings), (0, 0), slot.board, slot.call_master)
    assert (found is not None) is wanted
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        assert (account_for([source_of(server)], slot.writer, found) is not None) is wanted


# --- waking the master


def test_master_hears_of_one_that_leaves_the_idle(slot: Slot) -> None:
    """While it watches, the master is woken by a request that the worker had waited for, once it is seen to be busy."""
    account = OneAtATime(slot.writer, slot.witness(spares=True))
    slot.board.set_pool(PoolField.WATCH, 1)
    account.taken("request", 10**9, "client", slot)  # type: ignore[arg-type]
    assert (slot.called, slot.busy_when_called) == (1, True)
    ended = account.returned("request", Outcome.OK)
    account.taken("next", ended, "client", slot)  # type: ignore[arg-type]
    assert slot.called == 1  # it was there already: the worker was never idle
    ended = account.returned("next", Outcome.OK)
    account.taken("later", ended + AT_ONCE_NS, "client", slot)  # type: ignore[arg-type]
    assert slot.called == 2


@pytest.mark.parametrize(("spares", "watching"), [(True, 0), (False, 1)])
def test_master_is_left_alone(slot: Slot, spares: bool, watching: int) -> None:
    """Without spares, or while enough are idle, no request wakes the master."""
    account = OneAtATime(slot.writer, slot.witness(spares=spares, log=True))
    slot.board.set_pool(PoolField.WATCH, watching)
    account.taken("request", 10**9, "client", slot)  # type: ignore[arg-type]
    assert slot.called == 0


def test_worker_with_threads_leaves_the_idle_once(slot: Slot) -> None:
    """A worker that serves with threads is idle when it has no request in hand, not between two takes."""
    overlapping = Overlapping(slot.writer)
    overlapping.witness = slot.witness(spares=True)
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


# --- what is measured and told


def test_measured_wait_is_told(slot: Slot) -> None:
    """The line has the wait of its own request, and none where that is not known."""
    account = OneAtATime(slot.writer, slot.witness(log=True))
    slot.waits = QueueWaits(slot.writer)
    for waited in (4_000_000, None):
        slot.waits.note(waited)
        account.taken("request", 1, "client", slot)  # type: ignore[arg-type]
        account.returned("request", Outcome.OK)
    assert [line[2] for line in slot.lines] == [4_000_000, None]


@pytest.mark.parametrize("outcome", Outcome)
def test_end_is_told(slot: Slot, outcome: Outcome) -> None:
    """The line has listener, client, outcome and the duration that the scoreboard has."""
    account = OneAtATime(slot.writer, slot.witness(log=True))
    account.taken("request", 1, "client", slot)  # type: ignore[arg-type]
    account.returned("request", outcome)
    (line,) = slot.lines
    assert line == ("tcp://here:1", "client", None, outcome, slot.seen[SlotField.BUSY_NS])


def test_end_in_a_thread_is_told(slot: Slot) -> None:
    """A request that a thread finishes has its line when it is over, with what was known at its beginning."""

    class Threading(socketserver.ThreadingMixIn, socketserver.TCPServer):
        pass

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)

    slot.waits = QueueWaits(slot.writer)
    slot.waits.note(77)
    with Threading(("127.0.0.1", 0), Handler) as server:
        account = account_for([source_of(server)], slot.writer, slot.witness(log=True))
        assert isinstance(account, Overlapping)
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
    assert line[:4] == ("tcp://here:1", "client", 77, Outcome.OK)
    assert account._seen == {}


# --- more time


def worker_of(slot: Slot) -> ThisWorker:
    """Give the worker of the slot, as a handler sees it."""
    return ThisWorker(0, 2, os.getpid(), slot.writer, Turn())


def test_extension_holds_for_the_request_in_hand(slot: Slot) -> None:
    """Extensions of one request add up, those of the next one begin anew."""
    worker = worker_of(slot)
    slot.writer.words[SlotField.REQUEST_NS] = 111
    worker.extend_deadline(1.5)
    worker.extend_deadline(0)
    worker.extend_deadline(2)
    assert slot.seen[SlotField.EXTENDED_FOR_NS] == 111
    assert slot.seen[SlotField.EXTENSION_NS] == 3_500_000_000
    slot.writer.words[SlotField.REQUEST_NS] = 222
    worker.extend_deadline(0.25)
    assert slot.seen[SlotField.EXTENDED_FOR_NS] == 222
    assert slot.seen[SlotField.EXTENSION_NS] == 250_000_000


def test_extension_without_a_request_is_nothing(slot: Slot) -> None:
    """Between two requests there is no deadline to extend."""
    worker_of(slot).extend_deadline(5)
    assert slot.seen[SlotField.EXTENSION_NS] == slot.seen[SlotField.EXTENDED_FOR_NS] == 0


@pytest.mark.parametrize("seconds", [-0.001, float("nan"), float("inf"), -5, 7 * DAY + 1])
def test_absurd_extension_is_refused(slot: Slot, seconds: float) -> None:
    """Less than nothing, no number and more than a week are mistakes, and change nothing."""
    slot.writer.words[SlotField.REQUEST_NS] = 111
    with pytest.raises(ValueError, match="cannot extend a deadline by"):
        worker_of(slot).extend_deadline(seconds)
    assert slot.seen[SlotField.EXTENDED_FOR_NS] == 0


def test_sum_of_extensions_is_bounded(slot: Slot) -> None:
    """However often a handler asks, a request gets a week at the most, and asking never fails."""
    slot.writer.words[SlotField.REQUEST_NS] = 111
    for _ in range(3):
        worker_of(slot).extend_deadline(6 * DAY)
    assert slot.seen[SlotField.EXTENSION_NS] == LONGEST * 10**9


def test_this_worker_is_a_worker(slot: Slot) -> None:
    """What a handler sees has the names of every other worker, and reads the same."""
    worker = worker_of(slot)
    info = WorkerInfo(0, 2, os.getpid())
    assert isinstance(worker, WorkerInfo)
    assert str(worker) == str(info) == f"worker slot=0 gen=2 pid={os.getpid()}"
    assert (worker.slot, worker.generation, worker.pid) == (0, 2, os.getpid())
