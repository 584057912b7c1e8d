"""Queue waits: which requests are measured, and what the kernel says of them."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.settings import Settings
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.waits import (
    SAMPLE_EVERY,
    SO_TIMESTAMPNS,
    STAMP_BYTES,
    QueueWaits,
    sample_every,
    wait_of_connection,
    wait_of_datagram,
)
from tests.support.waiting import let_pass, wait_until

PRECISION = 0.001
"""Seconds by which a stamp may be wrong."""

TICK = 0.01
"""Seconds: the coarsest timer of a kernel, by which a TCP connection's age is told."""


@pytest.mark.parametrize(
    ("metrics", "access_log", "every"),
    [
        (None, "off", 0),
        ("127.0.0.1:0", "off", SAMPLE_EVERY),
        (None, "text", 1),
        ("127.0.0.1:0", "json", 1),
    ],
)
def test_what_is_sampled(metrics: str | None, access_log: str, every: int) -> None:
    """Nothing by default, some for metrics, every request where each has its line."""
    settings = Settings(workers=1, metrics=metrics, access_log=access_log)  # type: ignore[arg-type]
    assert sample_every(settings) == every


def test_connection_tells_since_when_it_could_be_accepted() -> None:
    """The wait is that of the connection, not of what it sent later."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        began = time.monotonic()
        let_pass(0.15)
        client.send(b"x")
        let_pass(0.05)
        request, _ = listener.accept()
        with request:
            waited = wait_of_connection(request)
        most = time.monotonic() - began
    assert waited is not None
    assert 0.2 - 2 * TICK <= waited / 1e9 <= most + 2 * TICK


@pytest.mark.parametrize("request_object", [b"bytes", None, ("data", "socket")])
def test_request_that_is_no_connection_is_unknown(request_object: object) -> None:
    """What an overridden get_request() returns may be anything."""
    assert wait_of_connection(request_object) is None


def test_closed_connection_is_unknown() -> None:
    """A request that verify_request() or a thread has closed meanwhile tells nothing, and raises nothing."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        request, _ = listener.accept()
        request.close()
        assert wait_of_connection(request) is None


def is_stamped(client: socket.socket, server: socket.socket) -> bool:
    """Return whether the kernel stamps datagrams at their arrival; it begins a moment after it is asked to."""
    client.sendto(b"first", server.getsockname())
    let_pass(0.01)
    _, ancillary, _, _ = server.recvmsg(10, STAMP_BYTES)
    return (wait_of_datagram(ancillary) or 0) >= 10_000_000


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_datagram_tells_when_it_arrived(family: socket.AddressFamily) -> None:
    """The stamp is of its arrival, to well below a millisecond."""
    with (
        socket.socket(family, socket.SOCK_DGRAM) as server,
        socket.socket(family, socket.SOCK_DGRAM) as client,
    ):
        server.bind("" if family == socket.AF_UNIX else ("127.0.0.1", 0))
        server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        wait_until(lambda: is_stamped(client, server), "the kernel stamps datagrams")
        began = time.monotonic()
        client.sendto(b"x", server.getsockname())
        sent = time.monotonic()
        let_pass(0.1)
        _, ancillary, _, _ = server.recvmsg(10, STAMP_BYTES)
        looked = time.monotonic()
        waited = wait_of_datagram(ancillary)
        ended = time.monotonic()
    assert waited is not None
    assert looked - sent - PRECISION <= waited / 1e9 <= ended - began + PRECISION


def test_datagram_without_a_stamp_is_unknown() -> None:
    """What else comes with a datagram is none of this."""
    assert wait_of_datagram([]) is None
    assert wait_of_datagram([(socket.SOL_SOCKET, 1, b"other")]) is None


def test_clock_that_was_set_back_gives_no_negative_wait() -> None:
    """A stamp of the future is a wait of nothing."""
    later = time.time_ns() + 10**12
    stamp = struct.pack("@qq", *divmod(later, 10**9))
    assert wait_of_datagram([(socket.SOL_SOCKET, SO_TIMESTAMPNS, stamp)]) == 0


def test_measured_waits_are_published() -> None:
    """The sum and the histogram hold the waits that were measured, and no others; the last one can be asked for."""
    board = Scoreboard.create(1)
    writer = SlotWriter(board, 0)
    waits = QueueWaits(writer)
    last = []
    for waited in (4_000_000, None, 20_000_000_000):
        waits.note(waited)
        last.append(waits.last)
    slot = board.snapshot().slots[0]
    writer.detach()
    board.close()
    assert last == [4_000_000, None, 20_000_000_000]
    assert slot[SlotField.QUEUE_WAIT_NS] == 20_004_000_000
    histogram = slot.histogram(SlotField.QUEUE_WAITS)
    assert [n for n, count in enumerate(histogram) if count] == [2, 13]
    assert sum(histogram) == 2


@pytest.mark.parametrize("field", [SlotField.QUEUE_WAIT_NS, SlotField.QUEUE_WAITS + 2])
def test_full_counter_of_the_waits_costs_no_request(field: int) -> None:
    """A sum or a bucket that a stray write has filled stays full, and the measurement raises nothing."""
    board = Scoreboard.create(1)
    writer = SlotWriter(board, 0)
    writer.words[field] = 2**63 - 1
    waits = QueueWaits(writer)
    waits.note(4_000_000)
    word, last = writer.words[field], waits.last
    writer.detach()
    board.close()
    assert (word, last) == (2**63 - 1, 4_000_000)
