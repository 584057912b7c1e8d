"""Closed-loop clients: each asks, waits for the whole answer, and asks again."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from processes import Server

MESSAGE = b"m" * 64
GET = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"
FAMILIES = {
    "tcp": socket.AF_INET,
    "udp": socket.AF_INET,
    "unix": socket.AF_UNIX,
    "http": socket.AF_INET,
}
LONGEST_ANSWER = 10.0
"""Seconds without an answer after which a run fails."""


def ask(server: Server, clients: int, seconds: float) -> int:
    """Load ``server`` from ``clients`` clients for ``seconds``; return how many requests were answered.

    One process runs all clients, so that the load itself is cheap and stays on one core.
    """
    if clients == 1:
        answered = 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ask_once(server)
            answered += 1
        return answered
    many = _ask_datagrams if server.transport == "udp" else _ask_connections
    return many(server, clients, seconds)


def ask_once(server: Server) -> bytes:
    """Ask from a fresh socket and wait for the whole answer."""
    with _open(server) as client:
        client.settimeout(LONGEST_ANSWER)
        client.send(_request(server))
        answer = client.recv(1024)
        while server.transport != "udp" and client.recv(1024):
            pass  # until the end: the server has shut its side
    if not answer:
        raise RuntimeError(f"{server.address} closed without an answer")
    return answer


def _request(server: Server) -> bytes:
    return GET if server.transport == "http" else MESSAGE


def _open(server: Server) -> socket.socket:
    kind = socket.SOCK_DGRAM if server.transport == "udp" else socket.SOCK_STREAM
    client = socket.socket(FAMILIES[server.transport], kind)
    client.connect(server.address)
    return client


def _ask_connections(server: Server, clients: int, seconds: float) -> int:
    """Connect afresh for each request; one event per answer, when the server shuts its side."""
    answered = 0
    asking: dict[int, socket.socket] = {}
    deadline = time.monotonic() + seconds
    request = _request(server)
    with select.epoll() as poller:

        def connect_and_send() -> None:
            client = _open(server)
            client.send(request)
            asking[client.fileno()] = client
            poller.register(client, select.EPOLLRDHUP)

        for _ in range(clients):
            connect_and_send()
        while asking:
            for number, _ in _answers(poller):
                client = asking.pop(number)
                answered += bool(client.recv(1024))
                client.close()  # leaves the poller by itself
                if time.monotonic() < deadline:
                    connect_and_send()
    return answered


def _ask_datagrams(server: Server, clients: int, seconds: float) -> int:
    """Keep one socket per client for the whole run, with one datagram under way on each."""
    answered = 0
    asking = {client.fileno(): client for client in (_open(server) for _ in range(clients))}
    deadline = time.monotonic() + seconds
    with select.epoll() as poller:
        for number, client in asking.items():
            poller.register(number, select.EPOLLIN)
            client.send(MESSAGE)
        while asking:
            for number, _ in _answers(poller):
                answered += bool(asking[number].recv(1024))
                if time.monotonic() < deadline:
                    asking[number].send(MESSAGE)
                else:
                    asking.pop(number).close()
    return answered


def _answers(poller: select.epoll) -> list[tuple[int, Any]]:
    events = poller.poll(LONGEST_ANSWER)
    if not events:
        raise RuntimeError(f"no answer for {LONGEST_ANSWER:g} s")
    return events
