"""When a worker asks a server without a socket for the next request: at once, when a descriptor is readable, or after a while."""

from __future__ import annotations

import os
import select
import socketserver
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from prefork.workers.listener import Kind
from prefork.workers.polled import PolledQueue, descriptor_of
from prefork.workers.scoreboard import Scoreboard
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.worker.polled import PolledSource
from prefork.workers.worker.shortage import Meaning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAR = 1000.0
"""Seconds of an interval that does not end during a test."""

SOON = 0.01
"""Seconds of an interval that does."""


class Requests(socketserver.BaseServer):
    """Gives what a test has put on its list: requests, None, and exceptions to be raised."""

    descriptor: int | None = None

    def __init__(self) -> None:
        super().__init__("a table", socketserver.BaseRequestHandler)
        self.found: list[Any] = []

    def fileno(self) -> int | None:  # type: ignore[override]  # None is what this is about
        """Return the descriptor, if there is one."""
        return self.descriptor

    def get_request(self) -> Any:
        """Return the next entry of the list; None if there is none."""
        entry = self.found.pop(0) if self.found else None
        if isinstance(entry, Exception):
            raise entry
        return (entry, "address") if entry is not None else None


class Bench:
    """A source, and the epoll of the loop that it is in."""

    def __init__(self, interval: float) -> None:
        self.server = Requests()
        self.board = Scoreboard.create(1)
        self.writer = SlotWriter(self.board, 0)
        self.source = PolledSource(PolledQueue(self.server), self.writer, interval=interval)
        self.epoll = select.epoll()
        self.source.enter_wait_queue(self.epoll)

    def is_due(self, seconds: float = 0.0) -> bool:
        """Return whether the worker is to ask, waiting this long for it."""
        return self.epoll.poll(seconds) == [(self.source.fd, select.EPOLLIN)]

    def take(self) -> Any:
        """Take a request; return it, or the exception in its place."""
        try:
            return self.source.take()[0]
        except Exception as error:  # noqa: BLE001 - what is tested
            return error

    def close(self) -> None:
        """Leave nothing."""
        self.source.close()
        self.epoll.close()
        self.writer.detach()
        self.board.close()


@contextmanager
def bench(interval: float = FAR) -> Iterator[Bench]:
    """Give a bench."""
    made = Bench(interval)
    try:
        yield made
    finally:
        made.close()


def meaning_of(source: PolledSource, error: Exception, *, draining: bool = False) -> Meaning:
    """Return what a failed take means."""
    return source.meaning_of(error, draining=draining, empty=draining)


@pytest.mark.parametrize("nothing", [None, BlockingIOError()], ids=["None", "BlockingIOError"])
def test_worker_asks_at_once_until_there_is_nothing(nothing: Any) -> None:
    """A worker asks when it begins, at once after each request, and not at once after an answer that there is nothing."""
    with bench() as it:
        it.server.found = ["one", "two", nothing, "three"]
        assert it.is_due()
        assert [it.take(), it.is_due(), it.take(), it.is_due()] == ["one", True, "two", True]
        error = it.take()
        assert isinstance(error, BlockingIOError)
        assert meaning_of(it.source, error) is Meaning.NOTHING
        assert not it.is_due()
        assert it.take() == "three"
        assert it.is_due()


def test_worker_asks_again_after_the_interval() -> None:
    """Where the server has no descriptor, the worker asks again after poll_interval."""
    with bench(SOON) as it:
        assert isinstance(it.take(), BlockingIOError)
        assert it.is_due(5.0)


def test_error_is_a_shortage_and_costs_an_interval() -> None:
    """An exception of get_request() is no end and no busy loop: it means a shortage, whatever its kind, and the worker rests."""
    with bench(FAR) as it:
        for error in (ValueError("bad"), OSError("no number"), ConnectionRefusedError(111, "no")):
            it.server.found = [error]
            assert it.take() is error
            assert meaning_of(it.source, error) is Meaning.SHORTAGE
            assert not it.is_due()


def test_descriptor_ends_the_rest() -> None:
    """A worker that rests asks when the descriptor of the server becomes readable."""
    with bench() as it:
        it.server.descriptor, write = os.pipe()
        assert isinstance(it.take(), BlockingIOError)
        assert not it.is_due()
        os.write(write, b"x")
        assert it.is_due()
        os.close(write)
        os.close(it.server.descriptor)


def test_descriptor_that_stays_readable_keeps_no_worker_busy() -> None:
    """A descriptor that is never read from ends one rest, and no more until something arrives."""
    with bench() as it:
        it.server.descriptor, write = os.pipe()
        os.write(write, b"x")
        assert isinstance(it.take(), BlockingIOError)
        assert it.is_due()
        assert isinstance(it.take(), BlockingIOError)
        assert not it.is_due()
        os.write(write, b"x")
        assert it.is_due()
        os.close(write)
        os.close(it.server.descriptor)


def test_what_arrives_during_the_question_is_not_missed() -> None:
    """A descriptor that becomes readable while get_request() looks ends the rest that follows."""
    with bench() as it:
        it.server.descriptor, write = os.pipe()
        assert isinstance(it.take(), BlockingIOError)
        ask = it.server.get_request

        def get_request() -> Any:
            found = ask()
            os.write(write, b"x")
            return found

        it.server.get_request = get_request  # type: ignore[method-assign]
        it.source.settle_steps()
        assert isinstance(it.take(), BlockingIOError)
        assert it.is_due()
        os.close(write)
        os.close(it.server.descriptor)


@pytest.mark.parametrize("same_number", [True, False])
def test_another_descriptor_is_watched(same_number: bool) -> None:
    """A server that has opened its database again has another descriptor, perhaps under the same number."""
    with bench() as it:
        first, write = os.pipe()
        it.server.descriptor = first
        assert isinstance(it.take(), BlockingIOError)
        os.close(write)
        other, write = os.pipe()
        if same_number:
            os.dup2(other, first)
            os.close(other)
        else:
            it.server.descriptor = other
            os.close(first)
        assert isinstance(it.take(), BlockingIOError)
        it.epoll.poll(0)
        assert isinstance(it.take(), BlockingIOError)
        assert not it.is_due()
        os.write(write, b"x")
        assert it.is_due()
        os.close(write)
        os.close(it.server.descriptor)


@pytest.mark.parametrize("problem", ["-1", "raises", "is closed", "is no number"])
def test_descriptor_of_a_lost_connection_costs_an_interval(
    problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests are taken although fileno() fails; the log says once that it does, and once that this is over."""
    with bench(SOON) as it:
        it.server.descriptor, write = os.pipe()
        assert isinstance(it.take(), BlockingIOError)
        assert not it.is_due(2 * SOON)  # the descriptor, and not the interval

        def fail() -> Any:
            if problem == "raises":
                raise ValueError("the connection is lost")
            return {"-1": -1, "is closed": 10**6, "is no number": "7"}[problem]

        it.server.fileno = fail  # type: ignore[method-assign]
        for _ in range(3):
            it.server.found = ["job"]
            assert it.take() == "job"
            assert isinstance(it.take(), BlockingIOError)
            assert it.is_due(5.0)
        said = [one.getMessage() for one in caplog.records]
        assert [one.partition(" listener=")[0] for one in said] == (
            []  # that of a closed socket, which is no error
            if problem == "-1"
            else ["worker cannot watch the descriptor of its server, asking at intervals"]
        )
        del it.server.fileno  # type: ignore[attr-defined]
        assert isinstance(it.take(), BlockingIOError)
        assert not it.is_due(2 * SOON)
        assert isinstance(it.take(), BlockingIOError)
        again = [one.getMessage() for one in caplog.records][len(said) :]
        assert (
            again
            == ["worker watches the descriptor of its server again listener=Requests"][: len(said)]
        )
        os.close(write)
        os.close(it.server.descriptor)


def test_file_that_cannot_be_watched_leaves_the_interval(tmp_path: Path) -> None:
    """The kernel waits for no regular file: a server with one is asked after the interval, and that is no error."""
    with bench(SOON) as it, (tmp_path / "file").open("w") as file:
        it.server.descriptor = file.fileno()
        assert isinstance(it.take(), BlockingIOError)
        assert it.is_due(5.0)


@pytest.mark.parametrize("interval", [1e19, float("inf"), float("nan"), -1.0, 0.0])
def test_odd_interval_is_no_busy_loop(interval: float) -> None:
    """Whatever the interval is, the worker rests after an answer that there is nothing."""
    with bench(interval) as it:
        assert isinstance(it.take(), BlockingIOError)
        assert not it.is_due()


def test_queue_stays_where_it_is() -> None:
    """A worker that is to leave takes nothing more, because nothing of the queue is lost with the pool."""
    with bench() as it:
        assert not it.source.is_drained
        queue = it.source.listener
        assert (queue.has_work(), queue.is_empty(), queue.needs_draining()) == (False, True, False)
        assert meaning_of(it.source, OSError(22, "no"), draining=True) is Meaning.DRAINED


def test_who_is_polled() -> None:
    """A server is polled where fileno() is missing or returns None, and is known by the name of its class."""
    server = Requests()
    assert descriptor_of(server) is None
    plain = socketserver.BaseServer("a table", socketserver.BaseRequestHandler)
    assert descriptor_of(plain) is None
    server.descriptor = 0
    assert descriptor_of(server) == 0
    queue = PolledQueue(server)
    assert (str(queue), queue.kind, queue.is_socket) == ("Requests", Kind.POLLED, False)
    assert queue.is_still(None)
    assert not queue.is_still(0)
