"""A small HTTP server with bounds on everything that a client can send, hold or delay.

One thread, one wait. A request is a head of at most 8 KiB; its answer is computed whole, so that
nothing of a client is waited for in between; one request is answered per connection. Threads per
connection were the alternative: the library's own server had 302 of them for 300 silent clients.

When all places are taken, a new client gets that of the one who has been at it longest: a scrape
is never kept waiting by clients that say nothing.
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
"""Connections at once; one more takes the place of the oldest."""

LONGEST_HEAD = 8192
"""Bytes of a request line and its headers."""

MOST_QUERY_FIELDS = 100

CLIENT_TIME = 5.0
"""Seconds a client has for everything: sending its request, taking its answer, closing."""

BEAT = 1.0
"""Seconds between two signs of life at most."""

LAST_ANSWERS = 0.3
"""Seconds in which clients that are here get their answers when it is time to leave; it is killed after 1."""

TEXT = "text/plain; charset=utf-8"

_ALWAYS = (
    "Connection: close",
    "Cache-Control: no-store",
    "X-Content-Type-Options: nosniff",
    "Referrer-Policy: no-referrer",
)
_NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'"

_PRESSURE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""Errors of accept() that come again until somebody gives something back: wait for the next beat."""

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.[0-9]")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")


class RefusedError(Exception):
    """A request that is answered with an error before anybody looks at what it asks for."""

    def __init__(self, status: HTTPStatus, **headers: str) -> None:
        super().__init__(status.phrase)
        self.response = failure(status, **headers)


class Request(msgspec.Struct, frozen=True):
    """What a client asks: path and query decoded, header names in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]


class Response(msgspec.Struct, frozen=True):
    """What it is answered. headers: further ones, by name. policy: the Content-Security-Policy."""

    body: bytes
    content_type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    policy: str = _NOTHING_ALLOWED


def failure(status: HTTPStatus, **headers: str) -> Response:
    """Make the answer that says only that it went wrong."""
    return Response(f"{status.phrase.lower()}\n".encode(), status=status, headers=headers)


def head_of(received: bytes) -> bytes | None:
    """Return the head of a request once it is whole, None before that; RefusedError when it cannot be one."""
    end = _END_OF_HEAD.search(received[: LONGEST_HEAD + 4])
    if end is not None and end.start() <= LONGEST_HEAD:
        return received[: end.start()]
    if received and not received[:1].isalpha():  # TLS, say: no reason to wait for more of it
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    if len(received) > LONGEST_HEAD:
        raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    return None


def parse(head: bytes) -> Request:
    """Read the head of a request; raises RefusedError for what is none, and for other methods than GET and HEAD."""
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
    """Return the bytes of an answer. body: whether its body goes along, which HEAD asks not to."""
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
    """How far a client has come; who gives way to a new one is chosen from the end of this list."""

    ANSWERED = 0
    """It takes its answer."""
    ASKING = 1
    """It sends its request."""
    LEAVING = 2
    """It has all of its answer. What it still sends is read, or closing would reset the connection
    and take from it what it has not read yet."""


class _Client:
    """One connection; it never outlives its deadline."""

    __slots__ = ("answer", "deadline", "received", "sock", "stage")

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.stage = _Stage.ASKING
        self.received = b""
        self.answer = memoryview(b"")


class Server:
    """Answers on a listening socket until it is told to leave.

    respond: computes an answer; an exception becomes a 500 and goes to ``complain``.
    heed: descriptors, and what is called once one is readable; it says whether to leave.
    beat: called at least every BEAT seconds while all is well; it says whether to leave.
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
        """Serve; returns when it is time to leave."""
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
        """Answer who is here; those who come now are the next process's, after a reload."""
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
            # The first of the latest stage: clients stand in the order in which they came.
            self._drop(max(self._clients.values(), key=lambda client: client.stage))
        client = _Client(sock, time.monotonic() + CLIENT_TIME)
        self._clients[sock.fileno()] = client
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._go_on(client)  # its request has mostly come along

    def _accept_again(self) -> None:
        if not self._accepting:
            self._accepting = True
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN)

    def _drop_late(self, now: float) -> None:
        for client in list(self._clients.values()):
            if client.deadline > now:
                return  # and so is everybody's who came later
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        del self._clients[client.sock.fileno()]
        client.sock.close()

    def _go_on(self, client: _Client) -> None:
        """Do what can be done for a client without waiting."""
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
        except OSError:  # it has gone
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
        except Exception as error:  # noqa: BLE001 - whatever it is, the next one may ask for something else
            self._complain(error)
            response = failure(HTTPStatus.INTERNAL_SERVER_ERROR)
        return rendered(response, body=request.method == "GET")

    def _send(self, client: _Client) -> None:
        client.answer = client.answer[client.sock.send(client.answer) :]
        if not client.answer:
            client.stage = _Stage.LEAVING
            client.sock.shutdown(socket.SHUT_WR)
            self._epoll.modify(client.sock.fileno(), select.EPOLLIN)
