"""Record marking (RFC 5531, section 11): messages on a stream, each in one or several fragments.

A fragment is a word and its bytes. The word has the number of the bytes, and its highest bit is set
before the last fragment of a record.

``Record`` is pure: bytes in, a message out. ``Records`` reads a connection (worker).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from time import monotonic
from typing import Any, Final

LAST: Final = 0x80000000

MOST_MARKED: Final = LAST - 1
"""Most bytes of a fragment, and so of a message that is sent in one."""

PIECE: Final = 1 << 16
"""Most bytes that are read at once."""

MOST_FRAGMENTS: Final = 1024
"""Fragments of one record: without a bound, a client could send empty ones for ever."""

LEAST: Final = 0.001
"""Seconds of a wait, at least."""


class RecordError(Exception):
    """A record has no end within the bounds. Nothing that follows on its connection can be understood."""


class Record:
    """One record while its bytes come in. most: bytes of the message."""

    def __init__(self, most: int) -> None:
        self.message = b""
        """The message, once the record is complete."""
        self._most = most
        self._size = 0
        self._fragments = 0
        self._parts: list[bytes] = []
        self._mark = b""
        """What has come of the word before a fragment, 4 bytes within a fragment."""
        self._left = 0
        """Bytes of the fragment that have not come yet."""

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes; return what follows the record in them, None while it is not complete.

        RecordError: more bytes or more fragments than the bounds allow.
        """
        at = 0
        while True:
            if len(self._mark) < 4:
                missing = 4 - len(self._mark)
                self._mark += data[at : at + missing]
                if len(self._mark) < 4:
                    return None
                at += missing
                self._begin_fragment()
            part = data[at : at + self._left]
            at += len(part)
            self._left -= len(part)
            self._parts.append(part)
            if self._left:
                return None
            if self._mark[0] & 0x80:
                self.message = b"".join(self._parts)
                return data[at:]
            self._mark = b""

    def _begin_fragment(self) -> None:
        self._left = int.from_bytes(self._mark, "big") & ~LAST
        self._size += self._left
        self._fragments += 1
        if self._size > self._most:
            raise RecordError(f"a record of {self._size} bytes or more, at most {self._most}")
        if self._fragments > MOST_FRAGMENTS:
            raise RecordError(f"a record of more than {MOST_FRAGMENTS} fragments")


def marked(message: bytes) -> bytes:
    """Return a message of at most MOST_MARKED bytes as a record of one fragment."""
    return (LAST | len(message)).to_bytes(4, "big") + message


class Records:
    """The records of one connection. ahead: what was read of it before.

    What has arrived and was not used yet is ``ahead``. It belongs to the next record.
    """

    def __init__(self, sock: Any, ahead: bytes = b"") -> None:
        self.ahead = ahead
        self._sock = sock
        # An encrypted socket knows no flags, and one with a timeout waits in spite of them.
        self._can_try = not isinstance(sock, ssl.SSLSocket) and sock.gettimeout() is None

    def read(self, most: int, seconds: float) -> bytes | None:
        """Return the next message; None where the client sends nothing more.

        most: bytes of a message. seconds: for all of it. RecordError: it is longer. TimeoutError: the
        client has begun and is too slow. ConnectionError: the connection ends within it.
        """
        data, self.ahead = self.ahead, b""
        until = monotonic() + seconds
        if not data:
            data = self._receive(until, begun=False)
            if not data:
                return None
        # The usual record: one fragment, which has come whole and alone.
        mark = int.from_bytes(data[:4], "big")
        if mark == LAST | (len(data) - 4) and len(data) - 4 <= most:
            return data[4:]
        return self._assemble(data, most, until)

    def send(self, data: bytes, seconds: float) -> None:
        """Send a reply. TimeoutError: the client does not take all of it in this time."""
        sent = 0
        if self._can_try:
            with contextlib.suppress(BlockingIOError):
                sent = self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if sent < len(data):
            before = self._sock.gettimeout()
            self._sock.settimeout(seconds if before is None else min(before, seconds))
            self._sock.sendall(memoryview(data)[sent:])
            self._sock.settimeout(before)  # not after TimeoutError: see _wait()

    def _assemble(self, data: bytes, most: int, until: float) -> bytes:
        record = Record(most)
        while (behind := record.feed(data)) is None:
            data = self._receive(until, begun=True)
            if not data:
                raise ConnectionError("the client has closed the connection within a record")
        self.ahead = behind
        return record.message

    def _receive(self, until: float, *, begun: bool) -> bytes:
        """Return the next bytes; b"" at the end of the stream, and where the client has not begun in time."""
        if self._can_try:
            try:
                received: bytes = self._sock.recv(PIECE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            else:
                return received
        return self._wait(until, begun=begun)

    def _wait(self, until: float, *, begun: bool) -> bytes:
        before = self._sock.gettimeout()
        received = b""
        try:
            # Never 0, which would mean not to wait at all, and to say so by another exception.
            left = max(LEAST, until - monotonic())
            # A client_timeout that is shorter bounds each wait; the wait for a new call has its own bound.
            self._sock.settimeout(min(left, before) if begun and before else left)
            received = self._sock.recv(PIECE)
        except TimeoutError:
            if begun:
                # The socket keeps its timeout: by that the pool counts this as the client's doing.
                raise
        self._sock.settimeout(before)
        return received
