"""Queue waits: which requests are measured, and what the kernel says of them."""

from __future__ import annotations

import socket
import time

import pytest

from prefork.workers.settings import Settings
from prefork.workers.waits import (
    SAMPLE_EVERY,
    SO_TIMESTAMPNS,
    STAMP_BYTES,
    Stamps,
    Turns,
    sample_every,
    tcp_queue_wait,
)
from tests.support.waiting import let_pass

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


@pytest.mark.parametrize(
    ("every", "expected"), [(1, "xxxxx"), (3, "x..x..x"), (7, "x......x......x")]
)
def test_turns(every: int, expected: str) -> None:
    """The first request is measured, and then every so many."""
    turns = Turns(every)
    seen = ""
    for _ in expected:
        seen += "x" if turns.is_next() else "."
        turns.passed()
    assert seen == expected


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
            waited = tcp_queue_wait(1)(request)
        most = time.monotonic() - began
    assert waited is not None
    assert 0.2 - 2 * TICK <= waited / 1e9 <= most + 2 * TICK


def test_only_every_seventh_is_asked_for() -> None:
    """Connections between two measurements cost no system call."""
    left, right = socket.socketpair()
    with left, right, socket.create_server(("127.0.0.1", 0)) as listener:
        queue_wait = tcp_queue_wait(7)
        answers = []
        for _ in range(15):
            with socket.create_connection(listener.getsockname()):
                request, _ = listener.accept()
                with request:
                    answers.append(queue_wait(request) is not None)
    assert [n for n, measured in enumerate(answers) if measured] == [0, 7, 14]


@pytest.mark.parametrize("request_object", [b"bytes", None, ("data", "socket")])
def test_request_that_is_no_connection_is_unknown(request_object: object) -> None:
    """What an overridden get_request() returns may be anything."""
    assert tcp_queue_wait(1)(request_object) is None


def test_closed_connection_is_unknown() -> None:
    """A request that verify_request() or a thread has closed meanwhile tells nothing, and raises nothing."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        request, _ = listener.accept()
        request.close()
        assert tcp_queue_wait(1)(request) is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_datagram_tells_when_it_arrived(family: socket.AddressFamily) -> None:
    """The stamp is of its arrival, to well below a millisecond, and is used for one datagram only."""
    with (
        socket.socket(family, socket.SOCK_DGRAM) as server,
        socket.socket(family, socket.SOCK_DGRAM) as client,
    ):
        server.bind("" if family == socket.AF_UNIX else ("127.0.0.1", 0))
        server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        client.sendto(b"first", server.getsockname())
        server.recv(10)  # the kernel begins to stamp a moment after it is first asked to
        began = time.monotonic()
        let_pass(0.05)
        client.sendto(b"x", server.getsockname())
        sent = time.monotonic()
        let_pass(0.1)
        _, ancillary, _, _ = server.recvmsg(10, STAMP_BYTES)
        stamps = Stamps(1)
        stamps.note(ancillary)
        waited = stamps.queue_wait(None)
        ended = time.monotonic()
    assert waited is not None
    assert 0.1 <= waited / 1e9 <= ended - began
    assert waited / 1e9 <= ended - sent + 0.02
    assert stamps.queue_wait(None) is None


def test_clock_that_was_set_back_gives_no_negative_wait() -> None:
    """A stamp of the future is a wait of nothing."""
    stamps = Stamps(1)
    later = time.time_ns() + 10**12
    stamp = (later // 10**9).to_bytes(8, "little") + (later % 10**9).to_bytes(8, "little")
    stamps.note([(socket.SOL_SOCKET, SO_TIMESTAMPNS, stamp), (socket.SOL_SOCKET, 1, b"other")])
    assert stamps.queue_wait(None) == 0
