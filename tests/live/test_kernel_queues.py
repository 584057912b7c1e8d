"""Real sockets: their queues as the kernel tells them to a process that has none of them open."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Literal

import msgspec
import pytest

from prefork.metrics import kernel
from prefork.metrics.description import (
    MOST_LISTENERS,
    ListenerDescription,
    PoolDescription,
)
from prefork.metrics.kernel import Queue, queues
from tests.support.server import environment
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAMILIES: dict[Literal["inet", "inet6", "unix"], int] = {
    "inet": socket.AF_INET,
    "inet6": socket.AF_INET6,
    "unix": socket.AF_UNIX,
}
LOOPBACK = {"inet": "127.0.0.1", "inet6": "::1"}


def described(listener: socket.socket) -> ListenerDescription:
    """Describe a listener as the master does on the scoreboard."""
    return ListenerDescription(
        name="a listener",
        kind="stream" if listener.type == socket.SOCK_STREAM else "datagram",
        family=next(name for name, number in FAMILIES.items() if number == listener.family),
        inode=os.fstat(listener.fileno()).st_ino,
        server="Test",
    )


def queue_of(listener: socket.socket) -> Queue:
    """Ask for the queue of one listener."""
    one = described(listener)
    return queues([one])[one.inode]


@contextlib.contextmanager
def listening(family: str, kind: int, address: object, backlog: int = 0) -> Iterator[socket.socket]:
    """Bind a socket, and listen where it can."""
    with socket.socket(FAMILIES[family], kind) as listener:
        listener.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            listener.listen(backlog)
        try:
            yield listener
        finally:
            if family == "unix":
                os.unlink(str(address))


@contextlib.contextmanager
def clients_of(listener: socket.socket, count: int) -> Iterator[list[socket.socket]]:
    """Connect this many clients that nobody accepts."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.socket(listener.family, listener.type))
            client.connect(listener.getsockname())
            clients.append(client)
        yield clients


def take(listener: socket.socket) -> None:
    """Accept one client and be done with it."""
    listener.accept()[0].close()


@pytest.mark.parametrize("family", ["inet", "inet6"])
def test_tcp_queue(family: str) -> None:
    """A TCP listener's depth is the number of connections nobody has accepted, its limit the backlog."""
    with (
        listening(family, socket.SOCK_STREAM, (LOOPBACK[family], 0), 7) as listener,
        clients_of(listener, 5),
    ):
        wait_until(lambda: queue_of(listener).depth == 5, "five wait")
        assert queue_of(listener) == Queue(depth=5, limit=7)

        take(listener)
        take(listener)
        assert queue_of(listener) == Queue(depth=3, limit=7)


def test_unix_queue(tmp_path: Path) -> None:
    """A Unix listener's depth and limit are known as well, which TCP_INFO and /proc/net do not tell."""
    with (
        listening("unix", socket.SOCK_STREAM, str(tmp_path / "s"), 6) as listener,
        clients_of(listener, 4),
    ):
        assert queue_of(listener) == Queue(depth=4, limit=6)

        take(listener)
        assert queue_of(listener) == Queue(depth=3, limit=6)


@pytest.mark.parametrize("family", ["inet", "inet6"])
def test_overflowed_udp_socket(family: str) -> None:
    """Datagrams that find no room in a UDP socket are counted as dropped, the others as bytes that wait."""
    with (
        listening(family, socket.SOCK_DGRAM, (LOOPBACK[family], 0)) as listener,
        clients_of(listener, 1) as (client,),
    ):
        assert queue_of(listener) == Queue(bytes=0, drops=0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least
        for _ in range(100):
            client.send(bytes(500))
        full = queue_of(listener)
        taken = 0
        listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while listener.recv(1000):
                taken += 1

        assert 0 < taken < 100
        assert full.drops == 100 - taken
        assert full.bytes is not None
        assert full.bytes >= 500 * taken
        assert queue_of(listener) == Queue(bytes=0, drops=100 - taken)


def test_unix_datagram_socket(tmp_path: Path) -> None:
    """Of a Unix datagram socket the kernel tells the first datagram, and no drops: there are none."""
    with (
        listening("unix", socket.SOCK_DGRAM, str(tmp_path / "d")) as listener,
        clients_of(listener, 1) as (client,),
    ):
        assert queue_of(listener) == Queue(bytes=0)
        client.send(bytes(77))
        client.send(bytes(11))

        assert queue_of(listener) == Queue(bytes=77)


def test_all_at_once_and_others_not(tmp_path: Path) -> None:
    """Listeners of all kinds are told apart in one call, by inode; one that is gone is left out."""
    with contextlib.ExitStack() as stack:
        places = [
            ("inet", socket.SOCK_STREAM, ("127.0.0.1", 0), 3),
            ("inet", socket.SOCK_STREAM, ("0.0.0.0", 0), 4),
            ("inet6", socket.SOCK_STREAM, ("::", 0), 5),
            ("inet", socket.SOCK_DGRAM, ("127.0.0.1", 0), 0),
            ("unix", socket.SOCK_STREAM, str(tmp_path / "s"), 6),
        ]
        listeners = [stack.enter_context(listening(*place)) for place in places]
        stack.enter_context(listening("inet", socket.SOCK_STREAM, ("127.0.0.1", 0), 9))
        gone = [
            msgspec.structs.replace(described(listener), inode=4_000_000_000 + n)
            for n, listener in enumerate(listeners)
        ]
        found = queues([*gone, *map(described, listeners)])

        assert found == {
            described(listener).inode: Queue(bytes=0, drops=0)
            if listener.type == socket.SOCK_DGRAM
            else Queue(depth=0, limit=place[3])
            for listener, place in zip(listeners, places, strict=True)
        }


def test_no_privilege_is_needed() -> None:
    """A process of nobody's, which could not read the master's descriptors, is told all the same."""
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    with (
        listening("inet", socket.SOCK_STREAM, ("127.0.0.1", 0), 7) as listener,
        clients_of(listener, 2),
    ):
        program = (
            "import os, sys\n"
            "from prefork.metrics.description import PoolDescription\n"
            "from prefork.metrics.kernel import queues\n"
            "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
            "print(*queues(PoolDescription.from_text(sys.argv[1]).listeners).values())\n"
        )
        pool = PoolDescription(listeners=(described(listener),))
        told = subprocess.run(
            [sys.executable, "-c", program, pool.to_text()],
            env=environment(),
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

        assert told == "Queue(depth=2, limit=7, bytes=None, drops=None)\n"


@pytest.mark.parametrize(
    "listener",
    [
        ListenerDescription("x", "stream", "inet", 0),
        ListenerDescription("x", "stream", "unix", -1),
        ListenerDescription("x", "stream", "unix", 2**80),
        ListenerDescription("x", "other", "inet", 7),
        ListenerDescription("x", "stream", "other", 7),
        ListenerDescription("x", "stream", "unix", 1),
    ],
    ids=repr,
)
def test_listener_that_the_kernel_does_not_know(listener: ListenerDescription) -> None:
    """A listener of another kind, or that cannot exist or does not, has no queue and is no error."""
    assert queues([listener]) == {}


def test_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where socket diagnosis is forbidden nothing is known, and nothing is raised."""

    def refuse(*_: object) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    with listening("inet", socket.SOCK_STREAM, ("127.0.0.1", 0), 7) as listener:
        one = described(listener)
        monkeypatch.setattr(kernel.socket, "socket", refuse)
        assert queues([one]) == {}


def message(length: int, kind: int, body: bytes = b"") -> bytes:
    """Pack an answer to the first question: struct nlmsghdr and what follows."""
    return struct.pack("=IHHII", length, kind, 0, 1, 0) + body


DONE = message(16, 3)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"x",
        bytes(16),
        b"\xff" * 20,
        message(16, 20),
        message(24, 20, bytes(8)) + DONE,
        message(16 + 80, 20, bytes(80)) + DONE,
        message(16 + 80, 20, b"\xff" * 80) + DONE,
        message(5000, 20, bytes(80)),
        message(16, 2),
    ],
    ids=range(10),
)
@pytest.mark.parametrize(("family", "kind"), [("inet", "datagram"), ("unix", "stream")])
def test_answers_of_another_kernel(
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    family: Literal["inet", "unix"],
    kind: Literal["stream", "datagram"],
) -> None:
    """Answers that make no sense end within the time allowed, with nothing known."""

    class Strange:
        """A netlink socket that answers the same again and again."""

        def __init__(self, *_: object) -> None:
            pass

        def sendto(self, *_: object) -> None:
            pass

        def settimeout(self, seconds: float) -> None:
            assert 0 < seconds <= kernel.LONGEST

        def recv(self, _: int) -> bytes:
            return answer

        def close(self) -> None:
            pass

    monkeypatch.setattr(kernel.socket, "socket", Strange)
    found = queues([ListenerDescription("x", kind, family, 7)])

    assert found in ({}, {7: Queue()})


def test_silent_kernel_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no answer comes the whole list of listeners costs its bounded time, once."""
    made = socket.socket

    def silent(*_: object) -> socket.socket:
        pair = made(socket.AF_INET, socket.SOCK_DGRAM)
        pair.bind(("127.0.0.1", 0))
        monkeypatch.setattr(made, "sendto", lambda *_: 0, raising=False)
        return pair

    monkeypatch.setattr(kernel.socket, "socket", silent)
    began = time.process_time(), time.monotonic()
    listeners = [ListenerDescription("x", "stream", "unix", n) for n in range(1, 50)]

    assert queues(listeners) == {}
    assert time.process_time() - began[0] < 0.05
    assert time.monotonic() - began[1] < 20 * kernel.LONGEST


def test_many_listeners_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a list of any length no more than the bound is asked about."""
    asked: list[int] = []

    def note(_: object, inode: int, __: str) -> Iterator[tuple[int, Queue]]:
        asked.append(inode)
        yield inode, Queue()

    monkeypatch.setattr(kernel, "_unix", note)
    listeners = [ListenerDescription("x", "stream", "unix", n) for n in range(1, 5000)]

    assert len(queues(listeners)) == len(asked) == MOST_LISTENERS
