"""The lot, without its process: which connections it holds, gives back and closes, and in which order."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING

import pytest

from prefork.parking.lot import Lot
from prefork.workers.parking import (
    DRAIN,
    MESSAGE_BYTES,
    MOST_PAYLOAD,
    PARK,
    READY,
    RESUMED,
    Receiver,
    send,
    unpack,
)
from prefork.workers.scoreboard import PoolField
from tests.support.scrapes import scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefork.workers.scoreboard import Scoreboard


class Bench:
    """A lot with one link, its workers' end, and clients; all in this process."""

    def __init__(self, board: Scoreboard, ends: contextlib.ExitStack, **limits: object) -> None:
        self.board = board
        self.ends = ends
        self.lot = Lot(board, **{"most": 100, "timeout": None, **limits})  # type: ignore[arg-type]
        ends.callback(self.lot.close)
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.workers_end = ends.enter_context(pair[0])
        self.lots_end = pair[1].detach()
        self.lot.add_link(self.lots_end)
        self.receive = Receiver(self.workers_end).receive

    def park(self, payload: bytes, kind: bytes = PARK) -> socket.socket:
        """Park a connection as a worker does; return its client."""
        client, connection = socket.socketpair()
        with connection:
            send(self.workers_end, kind, 0, payload, connection.fileno())
        self.ends.enter_context(client)
        self.run()
        return client

    def run(self) -> None:
        """Have the lot handle everything that has happened."""
        while events := self.lot.wait(0.0):
            self.lot.handle(events, {})

    def resumed(self) -> list[bytes]:
        """Return the payloads of the connections that have come back, and close these."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                message, fd = self.receive()
                if fd < 0:
                    break
                os.close(fd)
                kind, spoke_ns, payload = unpack(message)
                assert kind == RESUMED
                assert spoke_ns > 0
                found.append(payload)
        return found

    def count(self, field: PoolField) -> int:
        """Return a count that the lot has published."""
        return self.board.pool(field)


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Make benches that are taken apart after the test."""
    with contextlib.ExitStack() as ends:
        board = ends.enter_context(scoreboard())
        yield lambda **limits: Bench(board, ends, **limits)


def is_closed(client: socket.socket) -> bool:
    """Whether the other side of a connection has been closed everywhere."""
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        return client.recv(1) == b""
    return False


def test_connections_come_back_in_the_order_in_which_their_clients_spoke(
    bench: Callable[..., Bench],
) -> None:
    """A payload comes back unchanged, and who speaks first is served first, whoever was parked first."""
    one = bench()
    clients = {name: one.park(name) for name in (b"a", b"b", b"c")}
    assert one.resumed() == []
    for name in (b"c", b"a", b"b"):
        clients[name].send(b"x")
        one.run()
    assert one.resumed() == [b"c", b"a", b"b"]
    assert one.count(PoolField.PARKED) == 0
    assert one.count(PoolField.RESUMED_TOTAL) == 3


def test_what_was_read_ahead_waits_for_no_client(bench: Callable[..., Bench]) -> None:
    """A connection whose next request was read already comes back at once."""
    one = bench()
    client = one.park(b"ahead", READY)
    assert one.resumed() == [b"ahead"]
    assert is_closed(client)  # the worker's copy was the last one


def test_client_that_closes_is_closed(bench: Callable[..., Bench]) -> None:
    """A client that leaves without a word comes back to no worker; one that spoke first does."""
    one = bench()
    silent, speaking = one.park(b"silent"), one.park(b"speaking")
    silent.close()
    speaking.send(b"x")
    speaking.close()
    one.run()
    assert one.resumed() == [b"speaking"]
    assert one.count(PoolField.PARKED_LEFT) == 1


def test_longest_idle_is_evicted(bench: Callable[..., Bench]) -> None:
    """The lot never holds more than its bound; what has been idle for longest goes."""
    one = bench(most=3)
    clients = [one.park(b"%d" % number) for number in range(5)]
    assert [is_closed(client) for client in clients] == [True, True, False, False, False]
    assert one.count(PoolField.PARKED) == 3
    assert one.count(PoolField.PARKED_EVICTED) == 2


def test_silence_is_bounded(bench: Callable[..., Bench]) -> None:
    """A connection is closed when its silence is as long as the timeout, and stays until then."""
    one = bench(timeout=0.05)
    client = one.park(b"a")
    assert not is_closed(client)
    one.lot.handle(one.lot.wait(1.0), {})
    assert is_closed(client)
    assert one.count(PoolField.PARKED_TIMED_OUT) == 1


def test_full_link_loses_nothing(bench: Callable[..., Bench]) -> None:
    """More connections than a link takes come back all the same, in order, as workers take them."""
    one = bench(most=2000)
    names = [b"%d" % number for number in range(600)]
    clients = [one.park(name) for name in names]
    for client in clients:
        client.send(b"x")
    one.run()
    assert (
        one.count(PoolField.PARKED) == one.count(PoolField.RESUMED_WAITING) > 0
    )  # the link is full
    found = []
    while len(found) < len(names):
        found += one.resumed()
        one.run()
    assert found == names
    assert one.count(PoolField.PARKED) == one.count(PoolField.RESUMED_WAITING) == 0


def test_drain_closes_the_idle_and_gives_back_the_rest(bench: Callable[..., Bench]) -> None:
    """A stop closes what is idle, gives back what has spoken, and then ends the link."""
    one = bench()
    idle, spoken = one.park(b"idle"), one.park(b"spoken")
    spoken.send(b"x")
    send(one.workers_end, DRAIN, 0)
    one.lot.handle([(one.lots_end, select.EPOLLIN)], {})  # the word came after the wait had ended
    assert is_closed(idle)
    message, fd = one.receive()
    os.close(fd)
    assert message.endswith(b"spoken")
    assert one.receive() == (b"", -1)
    assert one.count(PoolField.PARKED_CLOSED) == 1


def test_no_message_is_cut(bench: Callable[..., Bench]) -> None:
    """The longest message comes whole; a longer one is not sent, and where a worker sends it, it is no message."""
    one = bench()
    longest = bytes(MOST_PAYLOAD)
    one.park(longest).send(b"x")
    one.run()
    assert one.resumed() == [longest]
    client, connection = socket.socketpair()
    with client, connection:
        with pytest.raises(OSError, match="Message too long"):
            send(one.workers_end, PARK, 0, longest + b"x", connection.fileno())
        whole = PARK + bytes(MESSAGE_BYTES)
        socket.send_fds(one.workers_end, [whole], [connection.fileno()])
        one.run()
    assert one.lot.held == 0
    assert one.park(b"next").fileno() >= 0
    assert one.lot.held == 1


@pytest.mark.parametrize(
    "message",
    [b"", b"P", b"D", b"?" * 9, b"\0" * 20, PARK, os.urandom(100), b"P" * MESSAGE_BYTES],
    ids=["empty", "one", "drain cut", "unknown", "zeros", "no connection", "random", "long"],
)
@pytest.mark.parametrize("passed", [0, 1, 2])
def test_garbage_of_a_worker_harms_nobody(
    bench: Callable[..., Bench], message: bytes, passed: int
) -> None:
    """Whatever a worker sends, no descriptor is kept that is no connection, and others are served on."""
    one = bench()
    client = one.park(b"a")
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as ends:
        files = [ends.enter_context(open(os.devnull, "rb")) for _ in range(passed)]
        socket.send_fds(one.workers_end, [message or b"\0"], [file.fileno() for file in files])
        one.run()
    assert len(os.listdir("/proc/self/fd")) == before
    client.send(b"x")
    one.run()
    assert one.resumed() == [b"a"]
