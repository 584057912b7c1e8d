"""The bytes of one connection on their way in: whole heads, and the bodies behind them (worker)."""

from __future__ import annotations

import io
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol

import httptools

from prefork.wsgi.head import END, RefusedRequest
from prefork.wsgi.wire import Wire

PIECE: Final = 1 << 16
"""Most bytes that are read at once."""

MOST_EMPTY_LINES: Final = 8
"""Bytes of empty lines that may precede a request: some clients send one after a body."""


class Incoming:
    """What a client sends. wire: its connection. ahead: what was read of it before.

    What has arrived and was not used yet is ``ahead``. It belongs to the next request.
    """

    def __init__(self, wire: Wire, ahead: bytes = b"") -> None:
        self.ahead = ahead
        self._wire = wire

    def read_head(self, most: int, seconds: float) -> bytes | None:
        """Return the next head with the empty line that ends it; None where the client sends nothing more.

        most: bytes of a head. seconds: for all of it. RefusedRequest: 431 for a longer head, 408 for a
        client that has begun and is too slow. A connection that ends within a head is a
        ConnectionError.
        """
        data, end = self.ahead, -1
        searched = 0
        until = None
        while True:
            if data:
                data = _without_empty_lines(data)
                end = data.find(END, max(0, searched - len(END)))
                if end >= 0 or len(data) > most:
                    break
                searched = len(data)
            piece = self._wire.try_to_receive(PIECE)
            if piece is None:
                until = monotonic() + seconds if until is None else until
                piece = self._wait(until, begun=bool(data))
            if not piece:
                if data:
                    raise ConnectionError("the client has closed the connection within a head")
                return None
            data += piece
        if end < 0 or end > most:
            raise RefusedRequest(431, f"the head is longer than {most} bytes")
        end += len(END)
        self.ahead = data[end:]
        return data[:end]

    def fetch(self) -> None:
        """Read what has arrived, without a wait."""
        self.ahead += self._wire.try_to_receive(PIECE) or b""

    def receive(self, most: int = PIECE) -> bytes:
        """Return the next bytes, as many as are there; b"" at the end of the stream.

        TimeoutError: none came within ``client_timeout``.
        """
        if self.ahead:
            piece, self.ahead = self.ahead[:most], self.ahead[most:]
            return piece
        return self._wire.receive(min(most, PIECE))

    def _wait(self, until: float, *, begun: bool) -> bytes:
        """Wait for more of a head until this instant; b"" where the client has not begun by then."""
        try:
            return self._wire.receive_until(PIECE, until)
        except TimeoutError:
            if begun:
                raise RefusedRequest(408, "the head did not arrive in time") from None
            return b""


def _without_empty_lines(data: bytes) -> bytes:
    if data[0] not in b"\r\n":
        return data
    stripped = data.lstrip(b"\r\n")
    if len(data) - len(stripped) > MOST_EMPTY_LINES:
        raise RefusedRequest(400, "empty lines before a request")
    return stripped


class Body(Protocol):
    """The body of a request, as the handler sees it.

    ``file`` is what the application gets. The application may catch what a read raises, so the body keeps the
    exception as ``failure``. After one, the end of the body is not known.
    """

    file: Any

    @property
    def failure(self) -> Exception | None:
        """What the last read that failed has raised; None where none has."""

    def is_read(self) -> bool:
        """Return whether the body was read to its end."""


class NoBody:
    """The body of a request without one, or of one whose bytes are all here."""

    failure = None

    def __init__(self, data: bytes = b"") -> None:
        self.file = io.BytesIO(data)

    def is_read(self) -> bool:
        """Return True: nothing of it is left on the connection."""
        return True


class _Raw(io.RawIOBase):
    """A body that is read from the connection. more: returns the next bytes, b"" at the end.

    failure: what the last read that failed has raised.
    """

    def __init__(self, more: Callable[[int], bytes]) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self._more = more

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._more(len(buffer))
        except Exception as error:
            self.failure = error
            raise
        buffer[: len(data)] = data
        return len(data)


class LengthBody:
    """A body of which the head has said the length. before: called before the connection is read."""

    def __init__(self, incoming: Incoming, length: int, before: Callable[[], None]) -> None:
        self._raw = _Raw(self._more)
        self.file = io.BufferedReader(self._raw, PIECE)
        self._incoming = incoming
        self._before = before
        self._left = length

    def is_read(self) -> bool:
        """Return whether the body was read to its end."""
        return not self._left

    @property
    def failure(self) -> Exception | None:
        """What the last read that failed has raised; None where none has."""
        return self._raw.failure

    def left(self) -> int:
        """Return how many bytes have not been taken from the connection."""
        return self._left

    def _more(self, most: int) -> bytes:
        if not self._left:
            return b""
        self._before()
        data = self._incoming.receive(min(most, self._left))
        if not data:
            raise ConnectionError("the client has closed the connection within a body")
        self._left -= len(data)
        return data


class ChunkedBody:
    """A body in chunks, decoded by ``httptools``.

    The parser would go on with the next request in the same bytes, and does not say where a message
    ends. But a message can only end with an empty line. So the parser gets its bytes in steps, each of which
    ends with the next empty line, although most of these lines are data: what follows the one that
    completes the message has not been fed, and belongs to the next request. No step can begin within the last line
    break and the empty line, since the line before an empty line has something in it, a size or a field.
    But the stream can be cut there, so the last bytes of each piece (``_tail``) are searched with the next one.

    The parser is a new one, for which a short head has announced chunks. The one that has read the real
    head may have seen ``Upgrade`` or ``Connection: close`` there, after which it takes no body.

    most: bytes of the decoded body; None for any number. overhead: bytes of sizes, extensions and
    trailers, of which the client may send this many, and 16 for each byte of the body.
    """

    def __init__(
        self, incoming: Incoming, most: int | None, overhead: int, before: Callable[[], None]
    ) -> None:
        self._raw = _Raw(self._more)
        self.file = io.BufferedReader(self._raw, PIECE)
        self._incoming = incoming
        self._most = most
        self._allowed = overhead
        self._before = before
        self._received = 0
        self._decoded: list[bytes] = []
        self._rest = b""
        self._tail = b""
        self._is_complete = False
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_ANNOUNCEMENT)

    def is_read(self) -> bool:
        """Return whether the body was read to its end."""
        return self._is_complete and not self._rest

    @property
    def failure(self) -> Exception | None:
        """What the last read that failed has raised; None where none has."""
        return self._raw.failure

    def on_message_begin(self) -> None:
        """Refuse to go on with the next request, whose bytes would be lost (called by the parser)."""
        if self._is_complete:
            raise RuntimeError("the parser has passed the end of the body")

    def on_body(self, data: bytes) -> None:
        """Take a decoded piece (called by the parser)."""
        self._decoded.append(data)

    def on_message_complete(self) -> None:
        """Note the end (called by the parser)."""
        self._is_complete = True

    def _more(self, most: int) -> bytes:
        while not self._rest and not self._is_complete:
            self._before()
            self._decode(self._incoming.receive())
        piece, self._rest = self._rest[:most], self._rest[most:]
        return piece

    def _decode(self, data: bytes) -> None:
        if not data:
            raise ConnectionError("the client has closed the connection within a body")
        used = self._feed(data)
        self._incoming.ahead = data[used:] + self._incoming.ahead
        self._rest = b"".join(self._decoded)
        self._decoded.clear()
        self._received += len(self._rest)
        self._allowed += 17 * len(self._rest) - used
        if self._most is not None and self._received > self._most:
            raise RefusedRequest(413, f"the body is longer than {self._most} bytes")
        if self._allowed < 0:
            raise RefusedRequest(400, "too many bytes between the chunks")

    def _feed(self, data: bytes) -> int:
        """Feed the parser until the message is complete; return how many bytes it got."""
        searched = self._tail + data
        before = len(self._tail)  # fed already
        at = 0
        try:
            while at < len(searched) and not self._is_complete:
                found = searched.find(END, at)
                end = len(searched) if found < 0 else found + len(END)
                self._parser.feed_data(searched[max(at, before) : end])
                at = end
        except httptools.HttpParserError as error:
            raise RefusedRequest(400, str(error)) from None
        self._tail = searched[1 - len(END) :]
        return at - before


_ANNOUNCEMENT: Final = b"POST / HTTP/1.1\r\nHost: -\r\nTransfer-Encoding: chunked\r\n\r\n"
