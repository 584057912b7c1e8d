"""Reading a PROXY header from a connection or a datagram, before anything else is read (worker)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final

from prefork.edge import proxy
from prefork.edge.client import ProxyFacts
from prefork.edge.passage import Passage, Refused
from prefork.workers.states import Rejection

_AT_ONCE: Final = 512
"""Bytes of one look: most headers are shorter."""

# Plain numbers: to combine two members of an enumeration takes a microsecond.
_NOW: Final = int(socket.MSG_DONTWAIT)
_LOOK: Final = int(socket.MSG_PEEK)
_LOOK_NOW: Final = _NOW | _LOOK

IsProxy = Callable[[Any], bool]
"""Returns whether a peer, by its plain address, has to send a header."""


def stream_step(is_proxy: IsProxy) -> Callable[[Passage], None]:
    """Return the step that reads a header from a connection of a proxy."""

    def read_header(passage: Passage) -> None:
        if is_proxy(passage.peer):
            _take_over(passage, _read(passage), datagram=False)
            if passage.is_trusted and _is_over(passage.request):
                raise ConnectionError("the health check is over")

    return read_header


def _is_over(sock: socket.socket) -> bool:
    """Return whether the other side has closed or reset a connection without a further byte."""
    sock.settimeout(0)
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False


def datagram_step(is_proxy: IsProxy) -> Callable[[Passage], None]:
    """Return the step that takes the header off a datagram of a proxy."""

    def cut_header(passage: Passage) -> None:
        if not is_proxy(passage.peer):
            return
        data, sock = passage.request
        try:
            header = proxy.parse_datagram(data)
        except proxy.ProxyError as error:
            raise Refused(Rejection.PROXY, str(error)) from None
        _take_over(passage, header, datagram=True)
        passage.request = data[header.length :], ReplySocket(sock, passage.client, passage.peer)

    return cut_header


def _take_over(passage: Passage, header: proxy.Header, *, datagram: bool) -> None:
    if header.source is not None:
        if header.is_datagram is not datagram:
            raise Refused(Rejection.PROXY, "a header for another kind of socket")
        passage.client = header.source
    passage.is_trusted = header.is_local
    passage.proxy = ProxyFacts(header.version, header.is_local, header.tlvs, header.destination)


def _read(passage: Passage) -> proxy.Header:
    """Read the header and not a byte more: what follows is for TLS or for the handler.

    How long the header is, is known only when a part of it is there. So the bytes are looked at
    first (MSG_PEEK), and then exactly those are taken that belong to the header. While the header
    is incomplete, these are all of them. So no look finds the same bytes again, and the wait for the
    rest is a real one.
    """
    sock: socket.socket = passage.request
    data = b""
    end: int | None = None
    try:
        while end is None:
            seen = _peek(passage, sock)
            if not seen:
                raise ConnectionError("the peer has closed the connection before its PROXY header")
            end = proxy.end_of(data + seen)
            wanted = len(seen) if end is None else end - len(data)
            data += sock.recv(wanted, _NOW)
        return proxy.parse(data)
    except proxy.ProxyError as error:
        raise Refused(Rejection.PROXY, str(error)) from None


def _peek(passage: Passage, sock: socket.socket) -> bytes:
    """Return what has come, and wait for something if nothing has.

    A proxy sends its header as soon as it has connected, so mostly the bytes are there. To look for them
    takes one system call, and to give the socket a timeout first would take three. A socket that has
    a timeout already, such as ``client_timeout``, would wait that long in spite of MSG_DONTWAIT.
    """
    if sock.gettimeout() is None:
        with contextlib.suppress(BlockingIOError):
            return sock.recv(_AT_ONCE, _LOOK_NOW)
    passage.allow_time(sock)
    return sock.recv(_AT_ONCE, _LOOK)


class ReplySocket:
    """The socket of a datagram that came by a proxy: what is sent to the client goes to the proxy.

    All else is the server's own socket.
    """

    def __init__(self, sock: Any, client: Any, peer: Any) -> None:
        self._sock = sock
        self._client = client
        self._peer = peer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        """Send a datagram as ``socket.sendto()`` does."""
        *flags, address = flags_and_address
        sent: int = self._sock.sendto(data, *flags, self._way(address))
        return sent

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
        """Send a datagram as ``socket.sendmsg()`` does."""
        sent: int = self._sock.sendmsg(buffers, ancdata, flags, self._way(address))
        return sent

    def _way(self, address: Any) -> Any:
        return self._peer if address == self._client else address
