"""``ParkingMixIn``: a handler that serves one request and leaves its connection to wait (worker)."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
from collections.abc import Callable
from socketserver import BaseRequestHandler
from typing import TYPE_CHECKING, Any, Final

from prefork.edge.client import packed
from prefork.parking.http import word_about_connection
from prefork.workers.parking import Luggage, has_spoken
from prefork.workers.worker.parking import (
    ATTRIBUTE,
    LATER,
    NEVER,
    NOW,
    Next,
    has_decrypted,
    refuse_state,
    start_anew,
)
from prefork.workers.worker.reader import OwnReader, Reader, give_back, read_ahead_of

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
    """Tells the pool that the server of this handler class needs the lot."""

    state: bytes = b""
    close_connection: bool = False

    fetch_ahead: Any = None
    """A method that reads what has arrived, for a handler that overrides ``take_read_ahead()``; None without one.

    ``take_read_ahead()`` returns from then on what the method has read. A worker calls the method when the client for
    which it has waited speaks. Without the method, each of these waits costs more.
    """

    _luggage: Luggage = _NOTHING

    def __init__(self, request: Any, client_address: Any, server: Any, **more: Any) -> None:
        """Serve requests of a connection, as ``BaseRequestHandler`` does for one, and park it.

        Raises what ``handle()`` raises, and TypeError or ValueError for a ``state`` that cannot be
        kept.
        """
        self._luggage = getattr(request, "luggage", _NOTHING)
        parking = getattr(server, ATTRIBUTE, _HERE).for_this_thread()
        self.handle = functools.partial(self._handle_all, self.handle, parking)  # type: ignore[method-assign]
        super().__init__(request, client_address, server, **more)
        if not self.close_connection:
            parking.park(request, self._luggage)

    def _handle_all(self, handle: Callable[[], None], parking: Any) -> None:
        """Serve one request, and those that follow at once on the same connection."""
        attributes = self.__dict__
        # The object and this function know each other: only a garbage collection would free both.
        del attributes["handle"]
        as_new = attributes.copy()
        reader = self._reader()
        try:
            following = self._handle_in_a_row(handle, parking, reader, as_new)
            if following is LATER:
                self._luggage = self._luggage_with(reader.ahead, as_new["client_address"])
            else:
                self.close_connection = True
        finally:
            reader.end()

    def _reader(self) -> Reader:
        """Return what the requests of this connection are read through."""
        rest = self.request, self.take_read_ahead, self.announces_end
        if self.fetch_ahead is not None:
            return OwnReader(*rest, self.fetch_ahead)
        return Reader(self.__dict__.get("rfile"), *rest)

    def _luggage_with(self, ahead: bytes, client_address: Any) -> Luggage:
        """Return what goes along with the connection: the same as came with it, if nothing has changed."""
        before = self._luggage
        has_changed = before is _NOTHING or before.is_new or before.state != self.state
        if not (has_changed or before.read_ahead or ahead):
            return before
        address, client = packed(client_address)
        return Luggage(address, self.state, ahead, client=client)

    def _handle_in_a_row(
        self, handle: Callable[[], None], parking: Any, reader: Reader, as_new: dict[str, Any]
    ) -> Next:
        """Serve requests until the client is quiet or gone; return what becomes of the connection."""
        while True:
            handle()
            if reader.is_in_use:
                following: Next = parking.converse(self, handle, reader, as_new)
                return following
            if self.close_connection:
                return NEVER
            refuse_state(self.state)
            following = parking.asks_again(reader)
            if following is not NOW:
                return following
            start_anew(self, as_new)

    def setup(self) -> None:
        """Prepare for a request: bring back the state, and what was read ahead."""
        self.state = self._luggage.state
        super().setup()
        if self._luggage.read_ahead:
            give_back(self.rfile, self._luggage.read_ahead)

    def take_read_ahead(self) -> bytes:
        """Return what was read of the connection and not handed out: it belongs to the next request.

        A handler that reads its connection otherwise than by ``rfile`` overrides this method and ``setup()``,
        and may have ``fetch_ahead()``.
        """
        return read_ahead_of(self.__dict__.get("rfile"))

    def handle(self) -> None:
        """Serve one request."""
        one_of_http = getattr(self, "handle_one_request", None)
        if one_of_http is None:
            super().handle()
            return
        self.close_connection = True  # until the request says otherwise
        one_of_http()

    def pool_is_closing(self) -> bool:
        """Return whether the pool is about to stop, so that the connection ends after this request."""
        closing: bool = getattr(self.server, ATTRIBUTE, _HERE).is_closing()
        return closing

    def announces_end(self) -> bool:
        """Return whether the answers of the protocol say that the connection ends, as those of HTTP do.

        During ``drain_delay`` a connection then goes on until an answer has said so. With other protocols
        it ends after its request. A handler that overrides this method looks at ``pool_is_closing()``
        when it answers, and sets ``close_connection`` where the answer says so.
        """
        return hasattr(self, "handle_one_request")

    def end_headers(self) -> None:
        """End the head of an answer (handlers of ``http.server``), and say in it whether the connection goes on."""
        word = word_about_connection(self, is_closing=self.pool_is_closing())
        if word is not None:
            self.send_header("Connection", word)
        super().end_headers()


class _WithoutLot:
    """What stands for the lot in a process that has none: the connection stays where it is."""

    def is_closing(self) -> bool:
        """Return False: nothing is parked here, and nothing ends."""
        return False

    def for_this_thread(self) -> _WithoutLot:
        """Return this object: each thread waits for its own connection."""
        return self

    def asks_again(self, reader: Reader) -> Next:
        """Wait until the client speaks, as long as the timeout of its socket; return NOW or NEVER."""
        request = reader.request
        if reader.read_ahead() or has_decrypted(request):
            return NOW
        if not isinstance(request, socket.socket) or request.fileno() < 0:
            return NEVER
        with contextlib.suppress(OSError):
            seconds = request.gettimeout()
            poll = select.poll()
            poll.register(request, select.POLLIN)
            if poll.poll(None if seconds is None else seconds * 1000):
                # By the descriptor: an encrypted socket lets nobody look without taking.
                return NOW if has_spoken(request.fileno()) else NEVER
        return NEVER

    def park(self, _request: Any, _luggage: Luggage) -> None:
        """Do nothing: the server closes the connection."""


_HERE: Final = _WithoutLot()
