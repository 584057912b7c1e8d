"""A small HTTP server with bounds on everything that a client can send, hold or delay.

One thread waits for all clients at once. A request is a head of at most 8 KiB, without a body. Its
answer is computed as a whole, so that no client is waited for in between. A connection has one
request. The alternative was a thread for each connection: prometheus_client's own server had 302
threads for 300 clients that said nothing.

A client passes three stages: it sends its request, it takes its answer, and it reads to the end.
All three together have one deadline. When all places are taken, a new client gets the place of
another: of the one that is in the latest stage, and among those of the one that came first. So a
scrape never waits for clients that say nothing.
"""

from __future__ import annotations

import errno
import re
import select
import socket
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from enum import IntEnum
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

MOST_CLIENTS = 16
"""Connections at once. One more takes the place of another."""

LONGEST_HEAD = 8192
"""Bytes of a request line and its headers together."""

MOST_QUERY_FIELDS = 100

CLIENT_TIME = 5.0
"""Seconds that a client has for all of it: to send its request, take its answer and close."""

BEAT = 1.0
"""Seconds between two calls of ``beat`` at most."""

LAST_ANSWERS = 0.3
"""Seconds in which connected clients get their answers at the end; the master kills after 1."""

TEXT = "text/plain; charset=utf-8"

_ALWAYS = (
    "Connection: close",
    "Cache-Control: no-store",
    "X-Content-Type-Options: nosniff",
    "Referrer-Policy: no-referrer",
)
_NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'"

_PRESSURE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""Errors of accept() that come again until memory or descriptors are free: pause for a beat."""

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.[0-9]")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")


class RefusedError(Exception):
    """A request that is answered with an error, whatever it asks for."""

    def __init__(self, status: HTTPStatus, **headers: str) -> None:
        super().__init__(status.phrase)
        self.response = failure(status, **headers)


class Request(msgspec.Struct, frozen=True):
    """What a client asks for. Path and query are decoded, the names of headers in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]


class Response(msgspec.Struct, frozen=True):
    """An answer. headers: further headers, by name. policy: the Content-Security-Policy."""

    body: bytes
    content_type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    policy: str = _NOTHING_ALLOWED


def failure(status: HTTPStatus, **headers: str) -> Response:
    """Return an answer that says only which error it is."""
    return Response(f"{status.phrase.lower()}\n".encode(), status=status, headers=headers)


def head_of(received: bytes) -> bytes | None:
    """Return the head of a request, None while it is incomplete; RefusedError if it is none."""
    end = _END_OF_HEAD.search(received[: LONGEST_HEAD + 4])
    if end is not None and end.start() <= LONGEST_HEAD:
        return received[: end.start()]
    if received and not received[:1].isalpha():  # such as TLS: more bytes would not make it a head
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    if len(received) > LONGEST_HEAD:
        raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    return None


def parse(head: bytes) -> Request:
    """Read the head of a request; RefusedError for a malformed one, or for another method."""
    first, *lines = (line.removesuffix("\r") for line in head.decode("latin-1").split("\n"))
    request_line = _REQUEST_LINE.fullmatch(first)
    if request_line is None:
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise RefusedError(HTTPStatus.BAD_REQUEST)
        name, value = header[1].lower(), header[2]
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    method, target = request_line.groups()
    if method not in ("GET", "HEAD"):
        raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")
    try:
        parts = urlsplit(target)
        query = parse_qs(parts.query, max_num_fields=MOST_QUERY_FIELDS)
    except ValueError:
        raise RefusedError(HTTPStatus.BAD_REQUEST) from None
    return Request(method, unquote(parts.path), query, headers)


def rendered(response: Response, *, body: bool = True) -> bytes:
    """Return the bytes of an answer. body: whether to send the body, which HEAD does not want."""
    lines = [
        f"HTTP/1.1 {response.status.value} {response.status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        f"Content-Security-Policy: {response.policy}",
        *_ALWAYS,
        *(f"{name}: {value}" for name, value in response.headers.items()),
    ]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head + response.body if body else head


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

    respond: computes an answer; an exception goes to ``complain`` and becomes a 500. heed:
    descriptors, and what to call once one of them is readable; it returns whether to end. beat:
    called at least every BEAT seconds; it returns whether to end.
    """

    def __init__(
        self,
        listener: socket.socket,
        respond: Callable[[Request], Response],
        *,
        complain: Callable[[BaseException], None],
        heed: Mapping[int, Callable[[], bool]],
        beat: Callable[[], bool],
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._respond = respond
        self._complain = complain
        self._heed = heed
        self._beat = beat
        self._clients: dict[int, _Client] = {}
        self._accepting = True
        self._epoll = select.epoll()
        for fd in (listener.fileno(), *heed):
            self._epoll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        """Serve until ``heed`` or ``beat`` return True."""
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
                    if not client.sock.recv(LONGEST_HEAD):
                        self._drop(client)
        except BlockingIOError:
            pass
        except OSError:  # the client has gone
            self._drop(client)

    def _hear(self, client: _Client) -> None:
        more = client.sock.recv(LONGEST_HEAD + 4 - len(client.received))
        client.received += more
        answer = self._answer(client.received)
        if answer is not None:
            client.received = b""
            client.answer = memoryview(answer)
            client.stage = _Stage.ANSWERED
            self._epoll.modify(client.sock.fileno(), select.EPOLLOUT)
            self._send(client)
        elif not more:
            self._drop(client)

    def _answer(self, received: bytes) -> bytes | None:
        try:
            head = head_of(received)
            if head is None:
                return None
            request = parse(head)
        except RefusedError as refused:
            return rendered(refused.response)
        try:
            response = self._respond(request)
        except Exception as error:  # noqa: BLE001 - the next request may ask for something else
            self._complain(error)
            response = failure(HTTPStatus.INTERNAL_SERVER_ERROR)
        return rendered(response, body=request.method == "GET")

    def _send(self, client: _Client) -> None:
        client.answer = client.answer[client.sock.send(client.answer) :]
        if not client.answer:
            client.stage = _Stage.LEAVING
            client.sock.shutdown(socket.SHUT_WR)
            self._epoll.modify(client.sock.fileno(), select.EPOLLIN)
