"""The bytes of one connection, in both directions, with as few system calls as possible (worker).

A socket object with a timeout is expensive. Python makes the socket non-blocking, and waits with ``poll()``
before each call, although most calls need not wait: the request is there when its worker takes the
connection, and the kernel has room for an answer. So a plain socket has no timeout here, and each call is
made at once, with MSG_DONTWAIT. Only a call that would have to wait is made again, with the timeout.

Where the wait ends in a TimeoutError, the socket keeps its timeout. This is how the rest of the worker sees that
the client was too slow, and not some other connection of the application (clients.py).

An encrypted socket knows no flags. Such a socket has its timeout all the time.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

_AT_ONCE: Final = int(socket.MSG_DONTWAIT)
_AT_ONCE_BEFORE_END: Final = int(socket.MSG_DONTWAIT | socket.MSG_MORE)

_DISCARDED: Final = 1 << 16
"""Bytes that are read at once where they are not kept."""

LEAST: Final = 0.001
"""Seconds of a wait, at least: 0 would mean not to wait, and to say so by another exception."""


class Wire:
    """Receives and sends the bytes of one connection.

    sock: the connection. timeout: the longest pause in seconds, None for no bound. A timeout that
    ``get_request()`` has given the socket comes before that.
    """

    def __init__(self, sock: Any, timeout: float | None) -> None:
        own = sock.gettimeout()
        self._timeout = timeout if own is None else own
        self._sock = sock
        self._is_plain = not isinstance(sock, ssl.SSLSocket)
        if own is not (wanted := None if self._is_plain else self._timeout):
            sock.settimeout(wanted)

    def try_to_receive(self, most: int) -> bytes | None:
        """Return what is there, b"" at the end of the stream, and None where nothing has arrived."""
        if not self._is_plain:
            return None
        try:
            received: bytes = self._sock.recv(most, _AT_ONCE)
        except BlockingIOError:
            return None
        return received

    def receive(self, most: int) -> bytes:
        """Return the next bytes, b"" at the end of the stream. TimeoutError: none came for too long."""
        received = self.try_to_receive(most)
        if received is None:
            received = self._patiently(self._sock.recv, most)
        return received

    def receive_until(self, most: int, until: float) -> bytes:
        """Return the next bytes, b"" at the end of the stream. TimeoutError: none came until this instant.

        until: as ``time.monotonic()`` has it.
        """
        before = self._sock.gettimeout()
        try:
            self._sock.settimeout(max(LEAST, until - monotonic()))
            received: bytes = self._sock.recv(most)
        finally:
            self._sock.settimeout(before)
        return received

    def send(self, data: bytes, *, is_last: bool = False) -> None:
        """Send all of it. TimeoutError: the client did not take it in time.

        is_last: the connection ends right after this. The kernel then sends the end in the same packet.
        """
        if self._is_plain:
            try:
                sent = self._sock.send(data, _AT_ONCE_BEFORE_END if is_last else _AT_ONCE)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        self._patiently(self._sock.sendall, data)

    def send_file(self, file: Any, offset: int, count: int) -> int:
        """Send a part of a file, by the kernel where that is possible; return how many bytes were there."""
        sent: int = self._patiently(self._sock.sendfile, file, offset, count)
        return sent

    def linger(self, most: float, silence: float) -> None:
        """End the connection after the last answer in such a way that a client which is still sending sees the answer.

        The kernel resets a connection that is closed while bytes of it are unread. A reset makes the client's next
        write fail, and can discard an answer that the client has not read. So the server first sends the
        end of its own stream, which most clients answer by closing theirs, and reads until the client closes.

        most: seconds in all. silence: seconds without a byte, after which the client is not waited for.
        The bytes need no bound of their own: none of them is kept.
        """
        before = self._sock.gettimeout()
        until = monotonic() + most
        with contextlib.suppress(OSError, ValueError):
            if self._is_plain:  # shutdown() of an encrypted socket ends TLS without its proper end
                self._sock.shutdown(socket.SHUT_WR)
            while (left := until - monotonic()) > 0:
                self._sock.settimeout(min(left, silence))
                if not self._sock.recv(_DISCARDED):
                    break
        with contextlib.suppress(OSError):
            self._sock.settimeout(before)  # what a timeout says of the client was said before

    def _patiently(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Make a call that may have to wait."""
        if not self._is_plain:
            return call(*arguments)
        self._sock.settimeout(self._timeout)
        result = call(*arguments)
        self._sock.settimeout(None)
        return result
