"""The lane for the queued datagrams of a plain server: they are served in rounds and share its costs (worker)."""

from __future__ import annotations

from socketserver import BaseRequestHandler
from time import monotonic_ns
from types import FrameType
from typing import Any

from prefork.workers.cancel import cancelled_in
from prefork.workers.scoreboard import SHORTEST_NS
from prefork.workers.slot_writer import ORDER, REQUEST_NS, Outcome
from prefork.workers.worker.cancelling import add_region
from prefork.workers.worker.datagrams import MSG_DONTWAIT, Datagrams
from prefork.workers.worker.lanes import GOOD, Common, Lane
from prefork.workers.worker.source import Source
from prefork.workers.worker.standard import as_defined

_INIT = as_defined(BaseRequestHandler, "__init__")
_SETUP = as_defined(BaseRequestHandler, "setup")
"""The standard library's own; None where a patch has replaced them already. A later patch is another function."""


class Rounds(Lane):
    """Queued datagrams, up to sixteen in a round. A lone datagram costs less in ``OneByOne``.

    Only for a server that handles a datagram by calling the handler class and doing nothing else;
    ``source.datagrams`` is not None then.
    """

    def __init__(self, source: Source, common: Common, datagrams: Datagrams) -> None:
        super().__init__(source, common)
        self._datagrams = datagrams

    def serve(self, now: int, until: int) -> int:
        """Serve as ``Lane.serve()`` says; the reasons to return are checked after each round."""
        # While rounds last, the socket is not in the worker's epoll. If it were, each reply that has
        # left would be an event on the socket, which the kernel would check: 0.3 µs of a datagram's 5.
        self._turn.until = until
        self.source.leave_wait_queue(self._common.epoll)
        now = self._serve_rounds(now)
        # If the turn was ended, this process takes no more requests, and it may be a process that a
        # handler forked: that one shares the epoll with its worker and must not change it.
        if self._turn.until:
            self.source.enter_wait_queue(self._common.epoll)
        return now

    def _serve_rounds(self, now: int) -> int:
        # A datagram takes 5 µs from the receive to the next receive, and one call of Python after a
        # system call costs 0.1 of them. So everything that need not be done for each datagram is done
        # once for a round: setting the socket's timeout back, looking up the handler class, checking
        # for orders, keeping the books. What remains for each is the receive, the handler, and one
        # reading of the clock.
        #
        # If the handler class is a plain one, its object is made in place: the same as calling the
        # class, with three calls of Python in place of five, saves 0.2 µs.
        #
        # A round ends after sixteen datagrams; after the datagram in hand once SHORTEST_NS (1 ms) has
        # passed; when a take or a request fails; and when Turn.end_round() was called. This bounds
        # what the shared books lose in exactness. REQUEST_NS is the beginning of the round, so a
        # deadline comes at most 1 ms early. Every datagram of a round except the last took at most
        # SHORTEST_NS, so it belongs in the first bucket of the histogram, and nothing has to look.
        # The last one may have taken longer, and then it is accounted for by itself.
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
                except BaseException as error:  # noqa: BLE001 - raised again unless the request was cancelled
                    short = done, now - begun
                    return self._end_otherwise(error, request, address, short, now)
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
        """End a round on the scoreboard.

        taken: how many datagrams it has received. short: how many of them went well and took at most
        SHORTEST_NS. duration_ns: what those took together.
        """
        self._writer.account_short(short, duration_ns)
        self._datagrams.count(taken)
        if taken and self._takes.fruitless:
            self._takes.succeeded(self.source)

    def _fail(self, request: Any, address: Any, since: int) -> int:
        """End a datagram whose handler raised, and account for it by itself; return when that ended."""
        self._writer.words[REQUEST_NS] = since
        self._settle(request, address)
        now = monotonic_ns()
        self._writer.account(Outcome.ERROR, now - since)
        return now

    def _end_otherwise(
        self,
        error: BaseException,
        request: Any,
        address: Any,
        short: tuple[int, int],
        since: int,
    ) -> int:
        """End a datagram whose handler was asked to end; return when that was. Raises any other exception.

        short: how many datagrams of the round went before, and the nanoseconds that they took.
        """
        done, duration = short
        cancelled = cancelled_in(error)
        if cancelled is None:
            self._writer.account_short(done, duration)
            self._abandon(request, since)
            raise error
        self._close_books(done + 1, done, duration)
        self._writer.words[REQUEST_NS] = since
        outcome = self._cancel(request, address, cancelled)
        now = monotonic_ns()
        self._writer.account(outcome, now - since)
        return now


def _is_before_finish(frame: FrameType, called: FrameType) -> bool:
    """Return whether a round is in ``handle()`` of its handler, and not in ``finish()`` (cancelling.py).

    All datagrams of a round have one number. A round begins no datagram later than SHORTEST_NS after its
    beginning, and the master asks for the end of no request that is younger (MIN_AGE). So the datagram
    in hand is the one that the master has meant.
    """
    finish = getattr(getattr(frame.f_locals.get("handler"), "finish", None), "__func__", None)
    return called.f_code is not getattr(finish, "__code__", None)


add_region(Rounds._serve_rounds, _is_before_finish)  # noqa: SLF001


def is_made_plainly(handler_class: Any) -> bool:
    """Return whether calling the class only sets three attributes and calls ``handle()`` and ``finish()``.

    A class that has its own ``__init__()``, ``__new__()`` or ``setup()``, or whose metaclass has its own
    ``__call__()``, may do anything when it is called, and so may an object that is not a class. The
    ``finish()`` is looked up on the object, because ``handle()`` may have replaced it there.
    """
    return (
        isinstance(handler_class, type)
        and issubclass(handler_class, BaseRequestHandler)
        and type(handler_class).__call__ is type.__call__
        and handler_class.__new__ is object.__new__
        and handler_class.__init__ is _INIT
        and handler_class.setup is _SETUP
    )
