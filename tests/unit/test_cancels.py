"""The asking itself, on both sides: what the master writes and sends, and where the worker raises."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socketserver
import sys
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.workers import named_requests
from prefork.workers.cancel import FLAGS, CancelReason, RequestCancelled, flags_in, word_of
from prefork.workers.identity import CANCEL_NUMBER
from prefork.workers.pool.views import Cancel
from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.slot_writer import CANCEL, CANCEL_HEARD, REQUEST_NS, SlotWriter
from prefork.workers.worker import cancelling
from prefork.workers.worker.cancelling import Cancelling, caller_of_handler
from prefork.workers.worker.limited_lines import LimitedLines
from tests.support.staged import StagedPool, pen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SOFT = FLAGS[CancelReason.SOFT_TIMEOUT]
COMMAND = FLAGS[CancelReason.COMMAND]


# --- the master


@pytest.fixture
def staged() -> Iterator[StagedPool]:
    """Give a pool of two workers, the second of which has request 77."""
    one = StagedPool(2)
    one.ready(2)
    with pen(one.pool, 1) as writer:
        writer.words[REQUEST_NS] = 77
    one.pool.views(one.now)
    yield one
    one.close()


def word(staged: StagedPool, field: SlotField) -> int:
    """Return a word of the second slot."""
    return staged.pool.board.word(1, field)


def test_worker_is_asked_by_a_word_and_a_signal(staged: StagedPool) -> None:
    """The word names the request and all reasons so far, the signal follows it, and the log says why once."""
    staged.apply(cancel=(Cancel(1, SOFT),))
    assert flags_in(word(staged, SlotField.CANCEL), 77) == SOFT
    assert staged.received(1) == [CANCEL_NUMBER]
    staged.apply(cancel=(Cancel(1, 0),))
    assert staged.received(1) == [CANCEL_NUMBER]
    staged.apply(cancel=(Cancel(1, COMMAND),))
    assert flags_in(word(staged, SlotField.CANCEL), 77) == SOFT | COMMAND
    assert staged.received(0) == []


def test_next_request_begins_anew(staged: StagedPool) -> None:
    """What was asked of a request, and who wanted it to end, is forgotten with that request."""
    staged.apply(cancel=(Cancel(1, SOFT),))
    staged.handle(1).asked.is_unwanted = True
    with pen(staged.pool, 1) as writer:
        writer.words[REQUEST_NS] = 78
    view = staged.pool.views(staged.now)[1]
    assert (view.asked, view.times_asked, view.is_unwanted) == (0, 0, False)
    assert flags_in(word(staged, SlotField.CANCEL), 78) == 0


def test_worker_has_heard_when_it_has_raised_for_all(staged: StagedPool) -> None:
    """A worker has heard when its word names this request and every reason; any other word counts for nothing."""
    staged.apply(cancel=(Cancel(1, SOFT | COMMAND),))
    for heard, expected in ((0, False), (word_of(77, SOFT), False), (word_of(76, 15), False)):
        staged.pool.board.words[staged.pool.board.slot_at(1) + SlotField.CANCEL_HEARD] = heard
        assert staged.pool.views(staged.now)[1].has_heard is expected
    staged.pool.board.words[staged.pool.board.slot_at(1) + SlotField.CANCEL_HEARD] = word_of(77, 15)
    assert staged.pool.views(staged.now)[1].has_heard


@pytest.mark.parametrize("request_ns", [2**63 - 1, -(2**63), -1])
def test_strange_number_of_a_request_does_no_harm(staged: StagedPool, request_ns: int) -> None:
    """Whatever a worker writes as its request, asking it raises nothing in the master."""
    with pen(staged.pool, 1) as writer:
        writer.words[REQUEST_NS] = request_ns
    staged.pool.views(staged.now)
    staged.pool.cancels.note_named(staged.now)
    staged.apply(cancel=(Cancel(1, SOFT),))
    assert staged.received(1) == [CANCEL_NUMBER]


def test_only_the_named_request_is_unwanted(staged: StagedPool) -> None:
    """A command names a request by a lock on its number, as long as it has the memory open; another number means nothing."""
    fd = os.open(f"/proc/self/fd/{staged.pool.board.fd}", os.O_RDONLY)
    try:
        named_requests.name(fd, 76)
        staged.pool.cancels.note_named(staged.now)
        assert not staged.handle(1).asked.is_unwanted
        named_requests.name(fd, 77)
        staged.pool.cancels.note_named(staged.now)
        assert staged.handle(1).asked.is_unwanted
        assert not staged.handle(0).asked.is_unwanted
        # It has begun since the master has looked at the slot.
        with pen(staged.pool, 1) as writer:
            writer.words[REQUEST_NS] = 79
        named_requests.name(fd, 79)
        staged.pool.cancels.note_named(staged.now)
        assert staged.pool.views(staged.now)[1].is_unwanted
    finally:
        os.close(fd)
    assert not named_requests.is_named(staged.pool.board.fd, 77)


def test_cpu_time_before_a_request_is_not_its_own(staged: StagedPool) -> None:
    """What a worker had used before its request was first seen does not count against the request."""
    process = staged.system.processes[staged.handle(1).info.pid]
    for used, expected in ((5.0, 0.0), (5.5, 0.5), (None, 0.5)):
        process.cpu_seconds = used
        staged.pool.cancels.measure(staged.handle(1))
        assert staged.handle(1).asked.cpu_used == expected
    staged.pool.cancels.measure(staged.handle(0))
    assert staged.handle(0).asked.cpu_used is None


def test_cpu_time_of_a_child_is_its_processs() -> None:
    """The clock of this very process says what ``time.process_time()`` says."""
    from prefork.workers import system

    mine = system.cpu_seconds(system.Child(os.getpid(), -1))
    assert mine == pytest.approx(time.process_time(), abs=0.2)
    assert system.cpu_seconds(system.Child(2**22 + 1, -1)) is None


# --- where a handler is


class Server(socketserver.BaseServer):
    """Serves what it is given, and notes where a handler was found to be interruptible."""

    def __init__(self, handler: Any) -> None:
        super().__init__("-", handler)
        self.found: dict[str, bool] = {}

    def look(self, what: str) -> None:
        """Ask as the signal handler asks, for the frame of the caller."""
        self.found[what] = caller_of_handler(sys._getframe(1)) is not None

    def close_request(self, request: Any) -> None:
        """Look."""
        del request
        self.look("close_request")

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Look."""
        del request, client_address
        self.look("verify_request")
        return True


class Handler(socketserver.BaseRequestHandler):
    """Looks in each of its steps, and deeper."""

    server: Server

    def setup(self) -> None:
        """Look."""
        self.server.look("setup")

    def handle(self) -> None:
        """Look, also from a call of the C library, and while an object is taken down."""
        self.server.look("handle")
        sorted([1], key=lambda _: self.server.look("in a callback of C"))
        Dying(self.server)

    def finish(self) -> None:
        """Look."""
        self.server.look("finish")
        sorted([1], key=lambda _: self.server.look("below finish"))


class Dying:
    """Looks in its ``__del__()``."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def __del__(self) -> None:
        self.server.look("in __del__()")


class Own:
    """A handler that is none of the standard library's."""

    def __init__(self, request: Any, client_address: Any, server: Server) -> None:
        del request, client_address
        server.look("__init__ of its own")


def test_exception_is_raised_in_setup_and_handle_only() -> None:
    """A handler may be interrupted in setup() and handle(), and below them; not in finish(), not around it, not in __del__()."""
    server = Server(Handler)
    server.verify_request(1, None)
    server.process_request(1, None)  # type: ignore[arg-type]
    assert server.found == {
        "verify_request": False,
        "setup": True,
        "handle": True,
        "in a callback of C": True,
        "in __del__()": False,
        "finish": False,
        "below finish": False,
        "close_request": False,
    }
    other = Server(Own)
    other.process_request(1, None)  # type: ignore[arg-type]
    assert other.found == {"__init__ of its own": True, "close_request": False}


def test_exception_is_not_raised_where_an_event_loop_swallows_it() -> None:
    """Within an event loop a coroutine and the wait for events may be interrupted, a callback and the turn of the loop may not."""
    server = Server(None)

    class Ready(deque[Any]):
        def popleft(self) -> Any:
            server.look("turn")
            return super().popleft()

    async def main() -> None:
        server.look("coroutine")
        loop: Any = asyncio.get_running_loop()
        loop._ready = Ready(loop._ready)
        really_select = loop._selector.select

        def select(timeout: float | None) -> Any:
            server.look("select")
            return really_select(timeout)

        loop._selector.select = select
        done = asyncio.Event()
        asyncio.get_running_loop().call_soon(lambda: (server.look("callback"), done.set()))
        await done.wait()

    class Looping(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asyncio.run(main())

    server.RequestHandlerClass = Looping
    server.process_request(1, None)  # type: ignore[arg-type]
    del server.found["close_request"]
    assert server.found == {"coroutine": True, "callback": False, "turn": False, "select": True}


# --- the worker


@pytest.fixture
def writer() -> Iterator[SlotWriter]:
    """Give the words of a worker that has request 77 in hand."""
    board = Scoreboard.create(1)
    made = SlotWriter(board, 0)
    made.words[REQUEST_NS] = 77
    yield made
    made.detach()
    board.close()


@pytest.fixture
def worker(writer: SlotWriter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cancelling]:
    """Give a worker that handles the master's signal in this process, for a handler that is this test."""
    monkeypatch.setattr(cancelling, "caller_of_handler", lambda frame: frame)
    made = Cancelling(writer)
    before = signal.signal(CANCEL_NUMBER, made.interrupt)
    made.begin("worker")
    yield made
    cancelling._of_this_process.remove(made)
    signal.signal(CANCEL_NUMBER, before or signal.SIG_DFL)


def ask(writer: SlotWriter, request: int = 77, flags: int = SOFT) -> None:
    """Do what the master does."""
    writer.words[CANCEL] = word_of(request, flags)
    signal.raise_signal(CANCEL_NUMBER)


@pytest.mark.usefixtures("worker")
def test_each_reason_is_raised_once_for_the_request_in_hand(writer: SlotWriter) -> None:
    """The request in hand gets each reason once, is heard, and any other request gets nothing."""
    for other in (76, 78):
        ask(writer, other)
    with pytest.raises(prefork.RequestTimeout) as raised:
        ask(writer)
    assert "in ask" in raised.value.place
    assert writer.words[CANCEL_HEARD] == word_of(77, SOFT)
    ask(writer)
    with pytest.raises(RequestCancelled) as by_command:
        ask(writer, flags=SOFT | COMMAND)
    assert by_command.value.reason == "command"
    writer.words[REQUEST_NS] = 78
    with pytest.raises(prefork.RequestTimeout):
        ask(writer, 78)


@pytest.mark.usefixtures("worker")
def test_exception_that_python_swallows_is_raised_again(
    writer: SlotWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no caller could take the exception it is lost, not heard and not shown, and the next signal raises it."""
    shown: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: shown.append(lost.exc_value))

    def abandoned() -> Iterator[None]:
        try:
            yield
        finally:
            ask(writer)

    class Thing:
        pass

    def swallow_in_generator() -> None:
        begun = abandoned()
        next(begun)
        del begun

    def swallow_in_weak_reference() -> None:
        thing = Thing()
        weakref.finalize(thing, ask, writer)
        del thing

    def swallow_in_ctypes() -> None:
        ctypes.CFUNCTYPE(None)(lambda: ask(writer))()

    for swallow in (swallow_in_generator, swallow_in_weak_reference, swallow_in_ctypes):
        swallow()
        assert writer.words[CANCEL_HEARD] == word_of(writer.words[REQUEST_NS], 0)
    assert not shown
    with pytest.raises(prefork.RequestTimeout):
        ask(writer)
    weakref.finalize(Thing(), int, "no number")
    assert [type(one) for one in shown] == [ValueError]


@pytest.mark.usefixtures("worker")
def test_shield_delays_to_its_outermost_end(writer: SlotWriter) -> None:
    """In shielded blocks nothing is raised; the end of the outermost one raises it, also where the block raises itself."""
    reached = []

    def nested() -> None:
        with prefork.shielded():
            with prefork.shielded():
                ask(writer)
            reached.append("between")

    def failing() -> None:
        with prefork.shielded():
            ask(writer, 78)
            raise ValueError("on purpose")

    with pytest.raises(prefork.RequestTimeout):
        nested()
    assert reached == ["between"]
    writer.words[REQUEST_NS] = 78
    with pytest.raises(prefork.RequestTimeout) as raised:
        failing()
    assert isinstance(raised.value.__context__, ValueError)


@pytest.mark.usefixtures("worker")
def test_shield_that_was_left_open_ends_with_its_request(writer: SlotWriter) -> None:
    """A block that a request never leaves does not protect the next request."""
    left_open = prefork.shielded()
    left_open.__enter__()
    writer.words[REQUEST_NS] = 78
    with pytest.raises(prefork.RequestTimeout):
        ask(writer, 78)
    left_open.__exit__(None, None, None)
    with prefork.shielded():
        pass


@pytest.mark.usefixtures("worker")
def test_shield_of_another_thread_has_no_effect(writer: SlotWriter) -> None:
    """Only the main thread is interrupted, so a block in another thread protects nothing."""
    inside, done = threading.Event(), threading.Event()

    def shield() -> None:
        with prefork.shielded():
            inside.set()
            done.wait()

    thread = threading.Thread(target=shield)
    thread.start()
    inside.wait()
    try:
        with pytest.raises(prefork.RequestTimeout):
            ask(writer)
    finally:
        done.set()
        thread.join()


def test_shield_outside_of_a_worker_does_nothing() -> None:
    """A program may use the block anywhere."""
    with prefork.shielded():
        pass


@pytest.mark.parametrize(("gone", "raises"), [(True, True), (False, False)])
def test_client_is_looked_at_before_it_is_gone(
    writer: SlotWriter, monkeypatch: pytest.MonkeyPatch, *, gone: bool, raises: bool
) -> None:
    """For the client the signal is a question: ClientGone is raised only where the client has gone."""
    monkeypatch.setattr(cancelling, "caller_of_handler", lambda frame: frame)
    worker = Cancelling(writer, lambda _request: gone)
    writer.words[CANCEL] = word_of(77, FLAGS[CancelReason.CLIENT_GONE])
    if raises:
        with pytest.raises(prefork.ClientGone):
            worker.interrupt(0, sys._getframe())
    for _ in range(3):
        worker.interrupt(0, sys._getframe())


def test_lines_are_limited() -> None:
    """One line for each kind and second says how many had none."""
    now, lines = 0.0, []
    limited = LimitedLines(lambda: now)
    log: Callable[..., None] = lambda *a, **facts: lines.append(facts["others"])  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefork.workers.worker.limited_lines.log.event", log)
        for _ in range(5):
            limited.write("one", "came")
        limited.write("another", "came")
        now = 1.0
        limited.write("one", "came")
    assert lines == [0, 0, 4]


def test_frame_of_ours_is_never_interrupted() -> None:
    """A frame of prefork's own code is none of a handler, whatever has called it."""
    seen: list[FrameType] = []

    class Spy(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            original = cancelling.place_of
            code = original.__code__
            sys.setprofile(
                lambda frame, event, _: seen.append(frame) if frame.f_code is code else None
            )
            try:
                original(sys._getframe())
            finally:
                sys.setprofile(None)

    Server(Spy).process_request(1, None)  # type: ignore[arg-type]
    assert seen
    assert caller_of_handler(seen[0]) is None
