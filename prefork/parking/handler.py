"""``ParkingMixIn``: a handler that serves one request and leaves its connection to wait (worker)."""

from __future__ import annotations

import contextlib
import functools
import io
import select
import socket
from collections.abc import Callable
from socketserver import BaseRequestHandler
from typing import TYPE_CHECKING, Any, Final

from prefork.edge.client import packed
from prefork.workers.parking import MOST_READ_AHEAD, MOST_STATE, Luggage
from prefork.workers.worker.parking import ATTRIBUTE

_NOTHING: Final = Luggage("")


class ParkingMixIn(BaseRequestHandler if TYPE_CHECKING else object):  # type: ignore[misc]
    """Mix-in for handlers whose connections stay open between two requests.

    Put the mix-in in front of ``StreamRequestHandler``, or of a handler class made from
    ``BaseHTTPRequestHandler``. ``handle()`` serves one request and returns. The connection then is
    *parked*: it holds no worker until its client speaks again. The next request is served by a new
    handler object, in whichever worker is free. A client that asks again at once is served by the
    same object, without ``finish()`` and ``setup()`` in between. All attributes are then as
    ``setup()`` has left them, except ``state``.

    Attributes that ``handle()`` may set:

    - ``close_connection``: True to close the connection after this request. The handlers of
      ``http.server`` set it themselves, as HTTP says.
    - ``state``: bytes, at most 4096, which the next handler object of this connection finds again.

    What ``rfile`` has read ahead of the request goes along. ``client_address`` stays the same.

    An exception closes the connection. So does an encrypted socket, because the state of TLS cannot
    leave its process. A handler that returns when the client has closed is not called again.

    Under a server without a pool, as with ``workers = 0`` or with the servers of the standard
    library, there is no lot. The connection then stays with its handler object, which waits for the
    next request.
    """

    can_park = True
    """What tells the pool to keep a lot for the server of this handler class."""

    state: bytes = b""
    close_connection: bool = False

    _luggage: Luggage = _NOTHING
    _read_ahead: bytes = b""

    def __init__(self, request: Any, client_address: Any, server: Any, **more: Any) -> None:
        """Serve requests of a connection, as ``BaseRequestHandler`` does for one, and park it.

        Raises what ``handle()`` raises, and TypeError or ValueError for a ``state`` that cannot be
        kept.
        """
        self._luggage = getattr(request, "luggage", _NOTHING)
        parking = getattr(server, ATTRIBUTE, _HERE)
        self.handle = functools.partial(self._handle_all, self.handle, parking)  # type: ignore[method-assign]
        super().__init__(request, client_address, server, **more)
        if not self.close_connection:
            address, client = packed(client_address)
            luggage = Luggage(address, self.state, self._read_ahead, client=client)
            parking.park(request, luggage)

    def _handle_all(self, handle: Callable[[], None], parking: Any) -> None:
        """Serve one request, and those that follow at once on the same connection."""
        # The object and this function know each other: only a garbage collection would free both.
        del self.__dict__["handle"]
        as_new = self.__dict__.copy()
        in_a_row = 0
        while True:
            handle()
            in_a_row += 1
            if self.close_connection:
                return
            _refuse_state(self.state)
            ahead = self.take_read_ahead()
            if not parking.asks_again(self.request, ahead or _decrypted(self.request), in_a_row):
                self._read_ahead = ahead
                return
            state = self.state
            self.__dict__.clear()
            self.__dict__.update(as_new, state=state)

    def setup(self) -> None:
        """Prepare for a request: bring back the state, and what was read ahead."""
        self.state = self._luggage.state
        super().setup()
        if self._luggage.read_ahead:
            _give_back(self.rfile, self._luggage.read_ahead)

    def take_read_ahead(self) -> bytes:
        """Return what was read of the connection and not handed out: it belongs to the next request.

        A handler that reads its connection otherwise than by ``rfile`` overrides this method and ``setup()``.
        """
        return _read_ahead_of(self.__dict__.get("rfile"))

    def handle(self) -> None:
        """Serve one request."""
        one_of_http = getattr(self, "handle_one_request", None)
        if one_of_http is None:
            super().handle()
            return
        self.close_connection = True  # until the request says otherwise
        one_of_http()


def _decrypted(request: Any) -> int:
    """Return how many bytes TLS has decrypted that nothing has read yet: no poll() knows of them."""
    pending = getattr(request, "pending", None)
    return 0 if pending is None else pending()


def _refuse_state(state: object) -> None:
    if not isinstance(state, bytes):
        raise TypeError(f"state must be bytes to be parked, not {type(state).__name__}")
    if len(state) > MOST_STATE:
        raise ValueError(f"state has {len(state)} bytes, and at most {MOST_STATE} can be parked")


class _WithoutLot:
    """What stands for the lot in a process that has none: the connection stays where it is."""

    def asks_again(self, request: Any, ahead: bytes | int, _in_a_row: int) -> bool:
        """Wait until the client speaks, as long as the timeout of its socket; return whether it does."""
        if ahead:
            return True
        if not isinstance(request, socket.socket) or request.fileno() < 0:
            return False
        with contextlib.suppress(OSError):
            seconds = request.gettimeout()
            poll = select.poll()
            poll.register(request, select.POLLIN)
            if poll.poll(None if seconds is None else seconds * 1000):
                return bool(request.recv(1, socket.MSG_PEEK))
        return False

    def park(self, _request: Any, _luggage: Luggage) -> None:
        """Do nothing: the server closes the connection."""


_HERE: Final = _WithoutLot()


# Of a buffered file, Python can return what it has read ahead only together with a further read. So
# for one call the file gets a source that has nothing, or one that has the bytes to give back. Both
# are set on the raw file as an attribute, which hides its own method.


def _read_ahead_of(rfile: Any) -> bytes:
    """Return what a handler's file has read and not handed out; b"" if that is nothing, or unknown."""
    if not isinstance(rfile, io.BufferedReader) or rfile.closed:
        return b""
    raw: Any = rfile.raw
    if not _is_of_socket(raw):
        return b""
    raw.readinto = _read_nothing
    try:
        ahead = rfile.peek()
    finally:
        del raw.readinto
    if len(ahead) > MOST_READ_AHEAD:
        raise ValueError(
            f"{len(ahead)} bytes were read ahead, and at most {MOST_READ_AHEAD} can be parked"
        )
    return ahead


def _is_of_socket(raw: object) -> bool:
    return isinstance(raw, socket.SocketIO)


def _read_nothing(_buffer: memoryview) -> None:
    """Say that nothing can be read now, as a socket that is non-blocking does."""


def _give_back(rfile: Any, ahead: bytes) -> None:
    """Have a handler's new file begin with these bytes."""
    raw: Any = rfile.raw if isinstance(rfile, io.BufferedReader) else rfile
    if not _is_of_socket(raw):
        raise TypeError(f"what was read ahead cannot be given back to {type(rfile).__name__}")
    left = memoryview(ahead)

    def read_ahead_first(buffer: memoryview) -> int:
        nonlocal left
        count = min(len(buffer), len(left))
        buffer[:count] = left[:count]
        left = left[count:]
        if not left:
            del raw.readinto
        return count

    raw.readinto = read_ahead_first
