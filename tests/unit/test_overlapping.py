"""Requests that outlive ``process_request()``: each is counted once, as what it was, and waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import socketserver
import threading
from typing import TYPE_CHECKING, Any

import pytest

from prefork.workers.scoreboard import Scoreboard, SlotField, SlotSnapshot
from prefork.workers.slot_writer import Outcome, SlotWriter
from prefork.workers.worker.accounting import Overlapping, account_for
from tests.support.waiting import CEILING, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


NO_SOURCE: Any = None  # asked for by the access log only


class Handler(socketserver.BaseRequestHandler):
    """Waits for a byte of its client, which says how the request ends."""

    def handle(self) -> None:
        """Wait for one byte and do what it says."""
        if self.request.recv(1) == b"!":
            raise ValueError("on purpose")


class Quiet:
    """Keeps the standard traceback off the tests' output."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


class Plain(Quiet, socketserver.TCPServer):
    """Serves within process_request()."""


class Threading(Quiet, socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves in a thread of its own per request."""


class Worker:
    """What a worker's loop does with a request, in its order, without its waiting."""

    def __init__(self, board: Scoreboard, server: socketserver.BaseServer) -> None:
        self.board, self.server = board, server
        self.writer = SlotWriter(board, 0)
        self.view = self.writer.words
        self.overlapping = Overlapping(self.writer)
        self.overlapping.watch(server)
        self.clients: list[socket.socket] = []

    @property
    def slot(self) -> SlotSnapshot:
        """Read what the worker has published."""
        return self.board.snapshot().slots[0]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Read how many requests went well, went wrong and were rejected."""
        slot = self.slot
        return slot.ok, slot[SlotField.ERRORS], slot[SlotField.REJECTED]

    def take(self, since: int = 1) -> tuple[socket.socket, socket.socket]:
        """Take a request; give it and its client."""
        client, request = socket.socketpair()
        self.clients.append(client)
        self.overlapping.taken(request, since, "client", NO_SOURCE)
        return request, client

    def process(self, request: Any) -> None:
        """Process a request as ``Loop`` does, also when that fails."""
        outcome = Outcome.OK
        try:
            self.server.process_request(request, "client")
        except RuntimeError:
            outcome = Outcome.ERROR
            self.overlapping.judge(request, outcome)
            self.server.shutdown_request(request)
        self.overlapping.returned(request, outcome)

    def reject(self, request: Any) -> None:
        """Turn a request down as ``Loop`` does after verify_request()."""
        self.overlapping.judge(request, Outcome.REJECTED)
        self.server.shutdown_request(request)
        self.overlapping.returned(request, Outcome.REJECTED)


@contextlib.contextmanager
def worker_of(server: socketserver.BaseServer) -> Iterator[Worker]:
    """Give a worker with one server, and take all of it down."""
    board = Scoreboard.create(1)
    worker = Worker(board, server)
    try:
        yield worker
    finally:
        for client in worker.clients:
            client.close()
        server.server_close()
        worker.view.release()
        board.close()


@pytest.fixture
def worker() -> Iterator[Worker]:
    """Give a worker that serves in threads."""
    with worker_of(Threading(("127.0.0.1", 0), Handler)) as made:
        yield made


def wait_in_background(worker: Worker) -> tuple[threading.Thread, threading.Event]:
    """Wait in a thread for the end of all requests; return the thread and an event that is set then."""
    over = threading.Event()

    def wait() -> None:
        worker.overlapping.wait_finished()
        over.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, over


# --- who is watched


def test_plain_servers_are_left_alone() -> None:
    """Servers that serve within process_request() have no account, and none of their calls is touched."""
    board = Scoreboard.create(1)
    writer = SlotWriter(board, 0)
    with Plain(("127.0.0.1", 0), Handler) as server:
        assert account_for([server], writer) is None
        assert not {"finish_request", "close_request"} & vars(server).keys()
    writer.words.release()
    board.close()


def test_server_class_that_was_patched_to_overlap_is_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a program has put in the place of BaseServer.process_request() may start threads."""
    in_thread = socketserver.ThreadingMixIn.process_request
    monkeypatch.setattr(socketserver.BaseServer, "process_request", in_thread)
    board = Scoreboard.create(1)
    writer = SlotWriter(board, 0)
    with Plain(("127.0.0.1", 0), Handler) as server:
        assert isinstance(account_for([server], writer), Overlapping)
    writer.words.release()
    board.close()


@pytest.mark.parametrize("also_plain", [False, True])
def test_one_threading_server_is_enough(also_plain: bool) -> None:
    """As soon as one server of a worker overlaps, the requests of all of them are in the account."""
    board = Scoreboard.create(1)
    writer = SlotWriter(board, 0)
    with (
        Plain(("127.0.0.1", 0), Handler) as plain,
        Threading(("127.0.0.1", 0), Handler) as threaded,
    ):
        servers = [plain, threaded] if also_plain else [threaded]
        assert isinstance(account_for(servers, writer), Overlapping)
    writer.words.release()
    board.close()


def test_class_is_not_touched(worker: Worker) -> None:
    """Only the worker's copy of the object is watched: other servers of the class are as before."""
    assert "finish_request" in vars(worker.server)
    assert type(worker.server).finish_request is socketserver.BaseServer.finish_request


# --- counting


@pytest.mark.parametrize(("counts", "byte"), [((1, 0, 0), b"."), ((0, 1, 0), b"!")])
def test_request_is_counted_at_its_end(
    worker: Worker, counts: tuple[int, int, int], byte: bytes
) -> None:
    """A request is in hand until its thread has closed it, and then counted once, as what it was."""
    request, client = worker.take(since=5)
    worker.process(request)
    assert (worker.slot.in_progress, worker.slot[SlotField.REQUEST_NS], worker.counts) == (
        1,
        5,
        (0, 0, 0),
    )

    client.send(byte)
    worker.overlapping.wait_finished()
    assert (worker.slot.in_progress, worker.slot[SlotField.REQUEST_NS], worker.counts) == (
        0,
        0,
        counts,
    )
    assert sum(worker.slot.histogram(SlotField.DURATIONS)) == 1
    assert client.recv(1) == b""


def test_oldest_request_is_the_one_shown(worker: Worker) -> None:
    """Of several requests the scoreboard shows how many there are and since when the oldest is in hand."""
    clients = []
    for since in (10, 20, 30):
        request, client = worker.take(since)
        worker.process(request)
        clients.append(client)
    seen = [(worker.slot.in_progress, worker.slot[SlotField.REQUEST_NS])]
    for client in (clients[1], clients[0], clients[2]):
        left = worker.slot.in_progress - 1
        client.send(b".")
        wait_until(lambda left=left: worker.slot.in_progress == left, "the thread has finished")
        seen.append((worker.slot.in_progress, worker.slot[SlotField.REQUEST_NS]))

    assert seen == [(3, 10), (2, 10), (1, 30), (0, 0)]
    assert worker.counts == (3, 0, 0)


def test_many_at_once_are_counted_exactly(worker: Worker) -> None:
    """Threads that end at the same moment lose no count, and the duration of each is in the histogram."""
    clients = []
    for _ in range(40):
        request, client = worker.take()
        worker.process(request)
        clients.append(client)
    for number, client in enumerate(clients):
        client.send(b"!" if number % 4 == 0 else b".")
    worker.overlapping.wait_finished()

    assert worker.counts == (30, 10, 0)
    assert sum(worker.slot.histogram(SlotField.DURATIONS)) == 40
    assert worker.writer.words[SlotField.IN_PROGRESS] == 0


def test_rejected_request_is_counted_as_rejected(worker: Worker) -> None:
    """A request that verify_request() turns down is closed by the loop, and is no good one."""
    request, _ = worker.take()
    worker.reject(request)

    assert worker.counts == (0, 0, 1)


def test_thread_that_cannot_start_is_an_error(worker: Worker) -> None:
    """Where no thread can be had the request has failed, is closed and no longer in hand."""

    def no_thread(request: Any, client_address: Any) -> None:
        raise RuntimeError("can't start new thread")

    worker.server.process_request = no_thread  # type: ignore[method-assign]
    request, client = worker.take()
    worker.process(request)

    assert client.recv(1) == b""
    assert worker.slot.in_progress == 0
    assert worker.counts == (0, 1, 0)


def test_failure_that_closes_nothing_is_counted() -> None:
    """A request that failed before a thread had it is over even if it is never closed."""
    with worker_of(Threading(("127.0.0.1", 0), Handler)) as worker:
        request, _ = worker.take()
        worker.overlapping.returned(request, Outcome.ERROR)
        request.close()

        assert (worker.slot.in_progress, worker.counts) == (0, (0, 1, 0))


def test_kept_socket_does_not_stay_in_hand() -> None:
    """A process_request() that finishes the request and leaves its socket open has finished it."""

    class Keeping(Quiet, socketserver.TCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            self.finish_request(request, client_address)

    with worker_of(Keeping(("127.0.0.1", 0), Handler)) as worker:
        request, client = worker.take()
        client.send(b".")
        worker.process(request)
        assert (worker.slot.in_progress, worker.counts) == (0, (1, 0, 0))

        worker.server.shutdown_request(request)
        assert worker.counts == (1, 0, 0)


def test_twice_closed_is_once_counted(worker: Worker) -> None:
    """A handler that closes its own request ends it; what the server does afterwards counts nothing."""
    request, _ = worker.take()
    worker.server.close_request(request)
    worker.server.close_request(request)
    worker.overlapping.returned(request, Outcome.OK)

    assert (worker.slot.in_progress, worker.counts) == (0, (1, 0, 0))


def test_quick_thread_is_waited_for_until_it_has_closed() -> None:
    """A request whose thread was faster than the loop is in hand until it is closed, so that a worker that leaves does not cut it off."""
    closing, may_close = threading.Event(), threading.Event()

    class Slow(Threading):
        def close_request(self, request: Any) -> None:
            closing.set()
            may_close.wait(CEILING)
            super().close_request(request)

    with worker_of(Slow(("127.0.0.1", 0), Handler)) as worker:
        request, client = worker.take()
        client.send(b".")
        worker.server.process_request(request, ("client", 0))
        closing.wait(CEILING)
        worker.overlapping.returned(request, Outcome.OK)
        in_progress = worker.slot.in_progress
        may_close.set()
        worker.server.server_close()  # joins its threads

        assert in_progress == 1


def test_strangers_are_not_counted(worker: Worker) -> None:
    """Closing what the loop never took (``handle_request()``, a socket of the handler) counts nothing."""
    one, other = socket.socketpair()
    worker.clients.append(other)
    worker.server.close_request(one)

    assert (worker.slot.in_progress, worker.counts) == (0, (0, 0, 0))


def test_close_that_fails_still_ends_the_request() -> None:
    """A close_request() that raises says so to its caller, and the request is over all the same, as a failed one."""

    class Failing(Threading):
        def close_request(self, request: Any) -> None:
            super().close_request(request)
            raise OSError("cannot close")

    with worker_of(Failing(("127.0.0.1", 0), Handler)) as worker:
        request, _ = worker.take()
        with pytest.raises(OSError, match="cannot close"):
            worker.server.close_request(request)

        assert (worker.slot.in_progress, worker.counts) == (0, (0, 1, 0))


def test_overrides_are_called_through() -> None:
    """What the server class does in finish_request() and close_request() is done, with its arguments."""
    calls: list[tuple[object, ...]] = []

    class Noting(Threading):
        def finish_request(self, request: Any, client_address: Any) -> None:
            calls.append(("finish", request, client_address))

        def close_request(self, request: Any) -> None:
            calls.append(("close", request))
            super().close_request(request)

    with worker_of(Noting(("127.0.0.1", 0), Handler)) as worker:
        request, _ = worker.take()
        worker.process(request)
        worker.server.server_close()  # joins its threads

        assert calls == [("finish", request, "client"), ("close", request)]


def test_datagrams_are_counted_too() -> None:
    """A request that is no socket but a datagram with its socket is accounted for in the same way."""

    class Datagrams(socketserver.ThreadingUDPServer):
        pass

    class Nothing(socketserver.BaseRequestHandler):
        pass

    with worker_of(Datagrams(("127.0.0.1", 0), Nothing)) as worker:
        request = (b"data", worker.server.socket)  # type: ignore[attr-defined]
        worker.overlapping.taken(request, 1, "client", NO_SOURCE)
        worker.process(request)
        worker.overlapping.wait_finished()

        assert worker.counts == (1, 0, 0)


def test_request_that_is_wrapped_on_its_way_is_over_at_its_end() -> None:
    """A server that wraps the socket in its thread (TLS) finishes and closes another object than was taken."""

    class Wrapping(Threading):
        def process_request_thread(self, request: Any, client_address: Any) -> None:
            wrapped = socket.socket(fileno=request.detach())
            super().process_request_thread(wrapped, client_address)

    with worker_of(Wrapping(("127.0.0.1", 0), Handler)) as worker:
        request, client = worker.take()
        worker.process(request)
        client.send(b".")
        assert client.recv(1) == b""
        worker.server.server_close()  # joins its threads

        assert (worker.slot.in_progress, worker.counts) == (0, (1, 0, 0))


# --- leaving


def test_leaving_waits_for_the_last_one(worker: Worker) -> None:
    """A worker that leaves waits until nothing is in hand, and not a moment when nothing is."""
    worker.overlapping.wait_finished()
    clients = []
    for _ in range(2):
        request, client = worker.take()
        worker.process(request)
        clients.append(client)
    thread, over = wait_in_background(worker)
    clients[0].send(b".")
    wait_until(lambda: worker.slot.in_progress == 1, "the first is over")
    assert not over.is_set()

    clients[1].send(b"!")
    assert over.wait(CEILING)
    thread.join(CEILING)


def test_fork_of_a_worker_counts_nothing(worker: Worker) -> None:
    """After detach() the requests of a forked copy end without a trace on the scoreboard."""
    request, client = worker.take()
    worker.process(request)
    before = worker.slot
    worker.writer.detach()
    client.send(b".")
    worker.overlapping.wait_finished()

    assert worker.slot == before


def test_memory_does_not_grow(worker: Worker) -> None:
    """Nothing is kept of a request that is over, whichever way it went."""

    def one(end: Callable[[Any], None], byte: bytes) -> None:
        request, client = worker.take()
        client.send(byte)
        end(request)
        worker.overlapping.wait_finished()

    for byte in (b".", b"!"):
        one(worker.process, byte)
    one(worker.reject, b".")
    worker.server.server_close()  # joins its threads

    assert (worker.overlapping._since, worker.overlapping._outcomes) == ({}, {})


@pytest.mark.processes
def test_child_forked_while_another_thread_keeps_the_books() -> None:
    """A child that a handler forks can end its request, though a thread that is not there held the lock."""
    board = Scoreboard.create(1)
    with contextlib.closing(board), Threading(("127.0.0.1", 0), Handler) as server:
        worker = Worker(board, server)
        worker.overlapping.taken(server, 1, None, NO_SOURCE)
        holding, done = threading.Event(), threading.Event()

        def hold() -> None:
            with worker.overlapping._changed:
                holding.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        holding.wait()
        pid = os.fork()
        if pid == 0:
            signal.alarm(5)
            worker.overlapping.enter_fork()
            worker.overlapping.returned(server, Outcome.ERROR)
            os._exit(7)
        status = os.waitpid(pid, 0)[1]
        done.set()
        thread.join()
        assert os.waitstatus_to_exitcode(status) == 7
