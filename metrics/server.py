"""A small server of answers, with bounds on everything that a client can send, hold or delay.

One thread waits for all clients at once. An answer is computed as a whole, so that no client is waited
for in between, and a connection gets one answer. The alternative was a thread for each connection:
prometheus_client's own server had 302 threads for 300 clients that said nothing.

A client passes three stages: it sends its request, it takes its answer, and it reads to the end.
All three together have one deadline. When all places are taken, a new client gets the place of
another: of the one that is in the latest stage, and among those of the one that came first. So a
scrape never waits for clients that say nothing.

The server knows no protocol. A *responder* is a function that receives the bytes that a client has sent
so far, and returns the whole answer, or None while the request is incomplete. The server calls the
responder first with no bytes at all, so a protocol in which the client sends nothing is answered at once.
``web.responder()`` makes the responder of HTTP, and ``Agent.respond()`` is that of HAProxy's agent check.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Final

MOST_CLIENTS: Final = 16
"""Connections at once. One more takes the place of another."""

LONGEST_REQUEST: Final = 8196
"""Bytes that are read of a client before its answer: the longest head of HTTP, and its end."""

CLIENT_TIME: Final = 5.0
"""Seconds that a client has for all of it: to send its request, take its answer and close."""

BEAT: Final = 1.0
"""Seconds between two calls of ``beat`` at most."""

LAST_ANSWERS: Final = 0.3
"""Seconds in which connected clients get their answers at the end; the master kills after 1."""

_PRESSURE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""Errors of accept() that come again until memory or descriptors are free: pause for a beat."""

Responder = Callable[[bytes], bytes | None]
"""Returns the answer to the bytes that a client has sent so far; None to wait for more of them.

The function raises nothing, and never returns None for LONGEST_REQUEST bytes.
"""


class _Stage(IntEnum):
    """How far a client has come. A client of a higher number gives way to a new one first."""

    ANSWERED = 0
    """The client takes its answer."""
    ASKING = 1
    """The client sends its request."""
    LEAVING = 2
    """The whole answer was sent. What the client still sends is read: closing a socket with unread
    bytes resets the connection, and the client would lose the part of the answer that it has not
    read yet."""


class _Client:
    """One connection, which never outlives its deadline."""

    __slots__ = ("answer", "deadline", "received", "sock", "stage")

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.stage = _Stage.ASKING
        self.received = b""
        self.answer = memoryview(b"")


class Server:
    """Answers requests on a listening socket.

    respond: computes the answers. heed: descriptors, and what to call once one of them is readable; the
    function returns whether to end. beat: called at least every BEAT seconds; returns whether to end.
    """

    def __init__(
        self,
        listener: socket.socket,
        respond: Responder,
        *,
        heed: Mapping[int, Callable[[], bool]],
        beat: Callable[[], bool],
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._respond = respond
        self._heed = heed
        self._beat = beat
        self._clients: dict[int, _Client] = {}
        self._accepting = True
        self._epoll = select.epoll()
        for fd in (listener.fileno(), *heed):
            self._epoll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        """Serve until ``heed`` or ``beat`` return True. The listener stays open, the clients do not."""
        try:
            self._serve()
        finally:
            for client in list(self._clients.values()):
                self._drop(client)
            self._epoll.close()

    def _serve(self) -> None:
        beat_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= beat_at:
                if self._beat():
                    return
                beat_at = now + BEAT
                self._accept_again()
            self._drop_late(now)
            first = next(iter(self._clients.values()), None)
            until = beat_at if first is None else min(beat_at, first.deadline)
            for fd, _ in self._epoll.poll(max(0.0, until - now)):
                if fd in self._heed:
                    if self._heed[fd]():
                        self._finish()
                        return
                elif fd == self._listener.fileno():
                    self._admit()
                elif fd in self._clients:
                    self._go_on(self._clients[fd])

    def _finish(self) -> None:
        """Answer the connected clients. New ones wait for the next process, as after a reload."""
        for fd in (self._listener.fileno(), *self._heed):
            self._epoll.unregister(fd)
        end = time.monotonic() + LAST_ANSWERS
        while self._clients and (left := end - time.monotonic()) > 0:
            for fd, _ in self._epoll.poll(left):
                if fd in self._clients:
                    self._go_on(self._clients[fd])

    # --- connections

    def _admit(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _PRESSURE:
                self._accepting = False
                self._epoll.modify(self._listener.fileno(), 0)
            return
        sock.setblocking(False)
        if len(self._clients) >= MOST_CLIENTS:
            # max() returns the first of several that are equal: the one that came first.
            self._drop(max(self._clients.values(), key=lambda client: client.stage))
        client = _Client(sock, time.monotonic() + CLIENT_TIME)
        self._clients[sock.fileno()] = client
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._go_on(client)  # its request has mostly arrived by now

    def _accept_again(self) -> None:
        if not self._accepting:
            self._accepting = True
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN)

    def _drop_late(self, now: float) -> None:
        for client in list(self._clients.values()):
            if client.deadline > now:
                return  # clients stand in the order in which they came, and so do their deadlines
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        del self._clients[client.sock.fileno()]
        client.sock.close()

    def _go_on(self, client: _Client) -> None:
        """Do what a client needs, as far as that is possible without waiting."""
        try:
            match client.stage:
                case _Stage.ASKING:
                    self._hear(client)
                case _Stage.ANSWERED:
                    self._send(client)
                case _Stage.LEAVING:
                    if not client.sock.recv(LONGEST_REQUEST):
                        self._drop(client)
        except BlockingIOError:
            pass
        except OSError:  # the client has gone
            self._drop(client)

    def _hear(self, client: _Client) -> None:
        if not client.received and self._answer(client):
            return  # the client need not say anything
        more = client.sock.recv(LONGEST_REQUEST - len(client.received))
        client.received += more
        if not self._answer(client) and not more:
            self._drop(client)

    def _answer(self, client: _Client) -> bool:
        """Begin to answer a client, if its request is whole; return whether it is."""
        answer = self._respond(client.received)
        if answer is None:
            return False
        client.received = b""
        client.answer = memoryview(answer)
        client.stage = _Stage.ANSWERED
        self._epoll.modify(client.sock.fileno(), select.EPOLLOUT)
        self._send(client)
        return True

    def _send(self, client: _Client) -> None:
        client.answer = client.answer[client.sock.send(client.answer) :]
        if not client.answer:
            client.stage = _Stage.LEAVING
            client.sock.shutdown(socket.SHUT_WR)
            self._epoll.modify(client.sock.fileno(), select.EPOLLIN)
