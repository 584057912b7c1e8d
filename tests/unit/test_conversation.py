"""A conversation: the requests of a client that asks again at once, and what the books say of them."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import socketserver
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.workers.parking import (
    INSTANT,
    MOST_PAYLOAD,
    PARK,
    RESUMED,
    Luggage,
    Receiver,
    decode,
    encode,
    send,
    unpack,
)
from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField
from prefork.workers.slot_writer import REQUEST_NS, Outcome, SlotWriter
from prefork.workers.states import Phase
from prefork.workers.worker.accounting import OneAtATime, Overlapping
from prefork.workers.worker.parking import ATTRIBUTE, IN_A_ROW_NS, Parking

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = b"line\n"

LONG_AGO_NS = 10**10
"""When a client spoke that is not quick, on a machine that has run for longer."""


class Through(prefork.ParkingMixIn, prefork.StreamRequestHandler):
    """A handler that reads through a file."""


class Bench:
    """A worker's parking with an account of a kind, and a client that asks again as soon as it has an answer."""

    def __init__(
        self, account_class: type[Any], ends: contextlib.ExitStack, *, linger: float = 0.5
    ) -> None:
        self.board = Scoreboard.create(2)
        ends.callback(self.board.close)
        self.board.set_pool(PoolField.PHASE, Phase.SERVING)
        self.writer = SlotWriter(self.board, 0)
        self.account = account_class(self.writer)
        self.server = SimpleNamespace()
        link, lots_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends.enter_context(link)
        self.lots_end = ends.enter_context(lots_end)
        listener: Any = SimpleNamespace(family=socket.AF_UNIX, socket_type=1, server=self.server)
        phase = self.board.pool_word(PoolField.PHASE)
        # The views of the board go before the board.
        ends.callback(phase.release)
        ends.callback(self.writer.words.release)
        parking = Parking(
            listener,
            link.fileno(),
            linger=linger,
            in_a_row_ns=IN_A_ROW_NS * 100,
            phase=phase,
            writer=self.writer,
        )
        epoll = select.epoll()
        ends.callback(epoll.close)
        epoll.register(link, select.EPOLLIN)
        parking.begin(epoll, self.account, lambda: None)
        ends.callback(parking._socket.detach)

    def serve_resumed(self, luggage: Luggage, new_state: bytes) -> bytes:
        """Serve a request of a connection that comes from the lot; return the luggage that goes back."""

        class Answering(prefork.ParkingMixIn, prefork.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(self.rfile.readline())
                self.state = new_state

        client, connection = socket.socketpair()
        parking = getattr(self.server, ATTRIBUTE)
        source: Any = SimpleNamespace(listener=None, waits=None)
        with client, connection:
            client.sendall(LINE)
            send(
                self.lots_end,
                RESUMED,
                LONG_AGO_NS,
                INSTANT.pack(0) + encode(luggage),
                connection.fileno(),
            )
            request, address = parking.take()
            with request:
                self.account.taken(request, time.monotonic_ns(), address, source)
                Answering(request, address, self.server)
                request.shutdown(socket.SHUT_WR)
                self.account.returned(request, Outcome.OK)
            message, fd = Receiver(self.lots_end).receive()
            os.close(fd)
            client.sendall(LINE)  # the connection is open: what was parked was not shut down
        kind, _, payload = unpack(message)
        assert kind == PARK
        assert INSTANT.unpack_from(payload)[0] > LONG_AGO_NS
        return payload[INSTANT.size :]

    def serve(
        self,
        requests: int,
        *,
        draining_from: int = 0,
        base: type[Any] | None = None,
    ) -> list[int]:
        """Serve a conversation; return what REQUEST_NS said in each request.

        draining_from: the request during which the pool begins to drain; 0 for none. base: of the handler,
        None for one that reads through a file.
        """
        board = self.board
        client, connection = socket.socketpair()
        words = self.writer.words
        seen: list[int] = []

        class Answering(base or Through):  # type: ignore[misc]
            def handle(self) -> None:
                self.wfile.write(self.rfile.readline())
                seen.append(words[REQUEST_NS])
                if len(seen) == draining_from:
                    board.set_pool(PoolField.PHASE, Phase.DRAINING)
                if len(seen) < requests:
                    client.sendall(LINE)
                else:
                    client.shutdown(socket.SHUT_WR)

        source: Any = SimpleNamespace(listener=None, waits=None)
        with client, connection:
            client.sendall(LINE)
            self.account.taken(connection, time.monotonic_ns(), "", source)
            Answering(connection, "", self.server)
            self.account.judge(connection, Outcome.OK)
            self.account.returned(connection, Outcome.OK)
        return seen


@pytest.fixture
def ends() -> Iterator[contextlib.ExitStack]:
    """Close what a test has opened."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("requests", [1, 2, 3, 16, 17, 40])
def test_each_request_counts_and_has_a_beginning_of_its_own(
    ends: contextlib.ExitStack, requests: int
) -> None:
    """However the books of short requests are shared, each counts once, and the scoreboard says since when each is in hand."""
    bench = Bench(OneAtATime, ends)
    seen = bench.serve(requests)
    assert len(set(seen)) == requests
    assert seen == sorted(seen)
    assert bench.board.snapshot().slots[0].ok == requests
    assert bench.writer.words[SlotField.ERRORS] == 0
    assert bench.writer.words[REQUEST_NS] == 0


class Direct(prefork.ParkingMixIn, socketserver.BaseRequestHandler):
    """A handler that reads its connection by itself: its own file, for what the worker has fetched."""

    fetched = 0

    def setup(self) -> None:
        """Begin with nothing."""
        self.ahead = bytearray()
        self.rfile = self
        self.wfile = SimpleNamespace(write=self.request.sendall)

    def readline(self) -> bytes:
        """Return the next line."""
        while b"\n" not in self.ahead:
            self.ahead += self.request.recv(100)
        line = bytes(self.ahead[: self.ahead.index(b"\n") + 1])
        del self.ahead[: len(line)]
        return line

    def take_read_ahead(self) -> bytes:
        """Return what was read and not handed out."""
        return bytes(self.ahead)

    def fetch_ahead(self) -> None:
        """Read what has arrived."""
        Direct.fetched += 1
        self.ahead += self.request.recv(100)


def test_handler_may_read_by_itself(ends: contextlib.ExitStack) -> None:
    """A handler that says how it reads has the same conversation as one that reads through a file."""
    bench = Bench(OneAtATime, ends)
    before = Direct.fetched
    seen = bench.serve(40, base=Direct)
    assert len(set(seen)) == 40
    assert bench.board.snapshot().slots[0].ok == 40
    # The first request came with the connection, and that of the second was waited for in another way.
    assert Direct.fetched - before == 38


@pytest.mark.parametrize("draining_from", [1, 2, 3, 17])
def test_client_that_has_spoken_is_served_while_the_pool_drains(
    ends: contextlib.ExitStack, draining_from: int
) -> None:
    """A worker that talks with a client when the pool begins to drain answers what the client has asked."""
    assert len(Bench(OneAtATime, ends).serve(20, draining_from=draining_from)) == 20


@pytest.mark.parametrize(
    ("phase", "announces", "is_parked"),
    [
        (Phase.SERVING, False, True),
        (Phase.SERVING, True, True),
        (Phase.NOT_READY, False, False),
        (Phase.NOT_READY, True, True),
        (Phase.DRAINING, True, False),
        (Phase.LEAVING, False, False),
    ],
)
def test_connection_ends_when_its_client_knows(
    ends: contextlib.ExitStack, phase: Phase, *, announces: bool, is_parked: bool
) -> None:
    """During drain_delay a connection goes on after its request only where an answer will say that it ends."""
    bench = Bench(OneAtATime, ends, linger=0)

    class Answering(prefork.ParkingMixIn, prefork.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline())
            bench.board.set_pool(PoolField.PHASE, phase)

        def announces_end(self) -> bool:
            return announces

    client, connection = socket.socketpair()
    with client, connection:
        client.sendall(LINE)
        bench.account.taken(connection, 1, "", SimpleNamespace(listener=None, waits=None))
        Answering(connection, "", bench.server)
        assert (connection.fileno() < 0) is is_parked


@pytest.mark.parametrize(
    ("phase", "is_parked"),
    [(Phase.SERVING, True), (Phase.NOT_READY, True), (Phase.DRAINING, False)],
)
def test_idle_connection_is_parked_until_the_pool_drains(
    ends: contextlib.ExitStack, phase: Phase, *, is_parked: bool
) -> None:
    """A connection whose last answer came before drain_delay began waits in the lot as all others."""
    bench = Bench(OneAtATime, ends)
    client, connection = socket.socketpair()
    with client, connection:
        bench.board.set_pool(PoolField.PHASE, phase)
        getattr(bench.server, ATTRIBUTE).park(connection, Luggage(""))
        assert (connection.fileno() < 0) is is_parked


def test_connection_with_too_much_luggage_is_closed_and_counted(ends: contextlib.ExitStack) -> None:
    """A client with an identity without end is not lost in silence: its connection is one that could not be parked."""
    bench = Bench(OneAtATime, ends)
    client, connection = socket.socketpair()
    with client, connection:
        luggage = Luggage("", client=["", "x" * MOST_PAYLOAD, None])
        getattr(bench.server, ATTRIBUTE).park(connection, luggage)
        assert connection.fileno() >= 0
    assert bench.board.snapshot().slots[0][SlotField.PARK_FAILURES] == 1


@pytest.mark.parametrize(
    ("state", "read_ahead", "is_new", "new_state"),
    [
        (b"a", b"", False, b"a"),
        (b"a", b"", False, b"b"),
        (b"a", LINE, False, b"a"),
        (b"a", b"", True, b"a"),
    ],
)
def test_luggage_is_that_of_the_last_request(
    ends: contextlib.ExitStack, state: bytes, read_ahead: bytes, is_new: bool, new_state: bytes
) -> None:
    """What goes back to the lot is what the handler has left, whether or not that is what came with the connection."""
    bench = Bench(OneAtATime, ends)
    came = Luggage(["a", 1], state, read_ahead, is_new)
    back = decode(bench.serve_resumed(came, new_state))
    # A line that was read ahead is served first, and the one in the socket is not looked at.
    assert back == Luggage(["a", 1], new_state)


def test_older_request_of_a_thread_stays_the_oldest(ends: contextlib.ExitStack) -> None:
    """A conversation does not hide that a thread of the worker has had a request in hand for longer."""
    bench = Bench(Overlapping, ends)
    older, since = object(), time.monotonic_ns()
    source: Any = SimpleNamespace(listener=None, waits=None)
    bench.account.taken(older, since, "", source)
    assert bench.serve(5) == [since] * 5
