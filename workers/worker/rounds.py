"""The lane of plain datagram servers: what is queued goes in rounds, which share what they cost (worker)."""

from __future__ import annotations

import select
from socketserver import BaseRequestHandler
from time import monotonic_ns
from typing import Any

from prefork.workers.scoreboard import ORDER, REQUEST_NS, SHORTEST_NS, Outcome, SlotWriter
from prefork.workers.worker.datagrams import MSG_DONTWAIT, Datagrams
from prefork.workers.worker.lanes import GOOD, Lane
from prefork.workers.worker.source import Source
from prefork.workers.worker.takes import Takes
from prefork.workers.worker.turn import Turn


class Rounds(Lane):
    """Serves queued datagrams in rounds; a lone one costs less in ``OneByOne``.

    For servers where to handle a datagram is to call the handler class and nothing more:
    ``source.datagrams`` says so. epoll: where the worker waits for its listeners.
    """

    def __init__(
        self,
        source: Source,
        writer: SlotWriter,
        turn: Turn,
        takes: Takes,
        identity: str,
        *,
        datagrams: Datagrams,
        epoll: select.epoll,
    ) -> None:
        super().__init__(source, writer, turn, takes, identity)
        self._datagrams = datagrams
        self._epoll = epoll

    def serve(self, now: int, until: int) -> int:
        """Serve as ``Lane.serve()`` says; each of the reasons to return is looked at after a round."""
        # While rounds last, the socket is out of the worker's epoll. With it in there, each reply that
        # has left is an event on the socket for the kernel to look at: 0.3 µs of a datagram's 5.
        self._turn.until = until
        self.source.leave_wait_queue(self._epoll)
        now = self._serve_rounds(now)
        # A turn that was ended is the last one of this process. It may be a fork of the worker, which
        # shares the worker's epoll and must not change it.
        if self._turn.until:
            self.source.enter_wait_queue(self._epoll)
        return now

    def _serve_rounds(self, now: int) -> int:
        # All of a datagram's way is 5 µs, and a call of Python after a system call is 0.1 of them. So
        # whatever need not be done for each datagram is done for a round of up to sixteen: looking
        # at the socket's timeout, at the handler class, at orders, and keeping the books. For each
        # remain the receive, the handler and one look at the clock.
        #
        # The handler object of a plain class is made in place: what calling the class does, in three
        # calls of five, is 0.2 µs less.
        #
        # A round ends with its sixteenth datagram, or with the one in hand once it has lasted
        # SHORTEST_NS (1 ms); when a take or a request fails; and when Turn.end_round() says so. Hence
        # what a round costs in exactness is bounded: REQUEST_NS is the beginning of the round, so
        # that a deadline comes at most a millisecond early, and all datagrams of a round but the last
        # are known to belong in the first bucket of the histogram without a look at each.
        server, writer, turn, datagrams = self._server, self._writer, self._turn, self._datagrams
        sock, size, timeout = datagrams.socket, datagrams.size, datagrams.socket.gettimeout
        most, new = datagrams.most, object.__new__
        while True:
            receive, room = datagrams.next_round()
            handler_class = self.source.handler_class()
            plain = is_made_plainly(handler_class)
            done = 0
            writer.words[REQUEST_NS] = begun = since = now
            turn.round_until = now + SHORTEST_NS
            for done in room:
                try:
                    data, address = receive(most, MSG_DONTWAIT)
                except Exception as error:  # noqa: BLE001 - as in OneByOne
                    self._close_books(done, done, now - begun)
                    self._takes.failed(self.source, error)
                    return now
                request = (data if len(data) <= size else datagrams.cut(data)), sock
                try:
                    if plain:
                        handler = new(handler_class)
                        handler.request = request
                        handler.client_address = address
                        handler.server = server
                        try:
                            handler.handle()
                        finally:
                            handler.finish()
                    else:
                        handler_class(request, address, server)
                except Exception:  # noqa: BLE001 - as in OneByOne
                    self._close_books(done + 1, done, now - begun)
                    return self._fail(request, address, now)
                except BaseException:
                    writer.account_short(done, now - begun)
                    self._abandon(request, now)
                    raise
                since, now = now, monotonic_ns()
                # With a timeout, which a handler may have set, the next receive would wait.
                if now > turn.round_until or timeout():
                    break
            if now - since <= SHORTEST_NS:
                self._close_books(done + 1, done + 1, now - begun)
            else:
                self._close_books(done + 1, done, since - begun)
                writer.account(GOOD, now - since)
            if now >= turn.until or writer.words[ORDER]:
                return now

    def _close_books(self, taken: int, short: int, duration_ns: int) -> None:
        """Account for the datagrams of a round that went well and were short, this long together."""
        self._writer.account_short(short, duration_ns)
        self._datagrams.count(taken)
        if taken and self._takes.fruitless:
            self._takes.succeeded(self.source)

    def _fail(self, request: Any, address: Any, since: int) -> int:
        """End a datagram whose handler raised, and account for it alone; return the instant of its end."""
        self._writer.words[REQUEST_NS] = since
        self._settle(request, address)
        now = monotonic_ns()
        self._writer.account(Outcome.ERROR, now - since)
        return now


def is_made_plainly(handler_class: Any) -> bool:
    """Return whether calling the class does no more than set three attributes, ``handle()`` and ``finish()``.

    A class with an ``__init__()``, a ``__new__()``, a ``setup()`` or a metaclass's ``__call__()`` of its
    own may do anything, and so may whatever is not a class. ``finish()`` may be the object's own, which
    ``handle()`` has given it.
    """
    return (
        isinstance(handler_class, type)
        and issubclass(handler_class, BaseRequestHandler)
        and type(handler_class).__call__ is type.__call__
        and handler_class.__new__ is object.__new__
        and handler_class.__init__ is BaseRequestHandler.__init__
        and handler_class.setup is BaseRequestHandler.setup
    )
