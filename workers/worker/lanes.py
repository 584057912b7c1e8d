"""Lanes: the ways to serve the requests of one source, from the take to the books (worker).

For each request, every lane makes the calls that ``BaseServer`` makes, in its order, and accounts for
the request on the scoreboard:

    take → open the books → verify → process → close the books → take the next one

``process`` stands for ``process_request()``, which runs the handler and closes the request. An
exception of the handler goes to ``handle_error()`` and ends the request; one that is no Exception, such
as SystemExit, ends the worker with it. Three lanes differ in how they keep the books:

- ``OneByOne``: one request in hand at a time, a few plain words of the scoreboard.
- ``Accounted``: an account object hears of each request: for requests that overlap (threads), for the
  access log, and where the master wants to know that an idle worker has become busy.
- ``Rounds`` (rounds.py): queued datagrams of a plain server share the books of up to sixteen.

The loop chooses a lane for each source before it serves, and again when ``worker_init()`` may have
changed the server object. The lane then loops by itself until its turn is over. So what kind of
request this is, and who wants to hear of it, is asked once for each source and not for each request.
That is also why two bodies here read alike: a shared one would have to ask.

To do something between the take and the handler, or between the handler and the end of the request,
is to change ``source.process``.
"""

from __future__ import annotations

import functools
import logging
from time import monotonic_ns
from typing import Any

from prefork.workers import log
from prefork.workers.scoreboard import ORDER, REQUEST_NS, Outcome, SlotWriter
from prefork.workers.worker.accounting import Account
from prefork.workers.worker.source import Source
from prefork.workers.worker.takes import Takes
from prefork.workers.worker.turn import Turn

GOOD = Outcome.OK  # an enum's look-up costs as much as a frame


class Lane:
    """One way to serve one source. Made anew when the steps of the source are settled anew.

    turn: when to return to the loop; all lanes of a worker share it. takes: what to do about a take
    that failed; shared, too. identity: names the worker in the log.
    """

    def __init__(
        self, source: Source, writer: SlotWriter, turn: Turn, takes: Takes, identity: str
    ) -> None:
        self.source = source
        self.for_queue: Lane = self
        """The lane to take while requests are queued: another one where several of them can share something."""
        self._server = source.server
        self._take = source.take
        self._verify = source.verify
        self._process = source.process
        self._writer = writer
        self._turn = turn
        self._takes = takes
        self._identity = identity

    def serve(self, now: int, until: int) -> int:
        """Serve one request, and go on with what is queued until an instant; return when that ended.

        now, until: monotonic nanoseconds. With ``until`` not after ``now`` that is one request, or
        one round. The lane returns early when nothing is queued, when the master has given an order, and when
        the turn was ended. Returns ``now`` when there was nothing to take. Raises what ends the worker:
        an exception of the handler that is no Exception, and the loss of the listening socket.
        """
        raise NotImplementedError

    def _settle(self, request: Any, address: Any) -> None:
        """End a request whose handler raised, within the ``except`` clause that caught it.

        ``BaseServer`` makes the same two calls and lets what they raise end the server. Here it
        costs the request only, and the second call is made in any case.
        """
        server = self._server
        end = functools.partial(server.shutdown_request, request)
        for step in (functools.partial(server.handle_error, request, address), end):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - costs this request, not the worker
                log.failure(
                    logging.ERROR, self._identity, "could not end a failed request properly", error
                )

    def _abandon(self, request: Any, since: int) -> None:
        """End the request that ends the worker."""
        self._writer.account(Outcome.ERROR, monotonic_ns() - since)
        self._server.shutdown_request(request)


class OneByOne(Lane):
    """One request in hand at a time, accounted for by a few plain words of the scoreboard."""

    def serve(self, now: int, until: int) -> int:
        """Serve as ``Lane.serve()`` says."""
        # The hot path. Whatever Python does here costs two or three times what it costs in a tight
        # loop, because the caches are cold after each system call. So the whole way of a request
        # stands in one function, whatever is needed for each is in a local, and the clock is read
        # once for each request: the end of one is the beginning of the next. That is right because
        # the next one was queued by then, or its wait begins a new turn. The two words that say
        # since when a request is in hand are all that the master needs for a deadline.
        take, verify, process = self._take, self._verify, self._process
        writer, turn, takes = self._writer, self._turn, self._takes
        turn.until = until
        while True:
            try:
                request, address = take()
            except Exception as error:  # noqa: BLE001 - an overridden get_request() may raise what it likes
                takes.failed(self.source, error)
                return now
            if takes.fruitless:
                takes.succeeded(self.source)
            outcome = GOOD
            # Through the writer each time: in a process that a handler forks it has other words.
            writer.words[REQUEST_NS] = now
            try:
                if verify is None or verify(request, address):
                    process(request, address)
                else:
                    outcome = Outcome.REJECTED
                    self._server.shutdown_request(request)
            except Exception:  # noqa: BLE001 - handle_error() is where the server class says what to do
                outcome = Outcome.ERROR
                self._settle(request, address)
            except BaseException:
                self._abandon(request, now)
                raise
            since, now = now, monotonic_ns()
            writer.account(outcome, now - since)
            if now >= turn.until or writer.words[ORDER]:
                return now


class Accounted(Lane):
    """As ``OneByOne``, with an account that hears of each request; it knows when a request is over."""

    def __init__(
        self,
        source: Source,
        writer: SlotWriter,
        turn: Turn,
        takes: Takes,
        identity: str,
        *,
        account: Account,
    ) -> None:
        super().__init__(source, writer, turn, takes, identity)
        self._account = account

    def serve(self, now: int, until: int) -> int:
        """Serve as ``Lane.serve()`` says."""
        # The same way as in OneByOne. The account is called at each of its points: when a request
        # was taken, with the outcome before the call that ends a request which did not go well (the
        # account may watch that very call), and when process_request() has returned.
        take, verify, process = self._take, self._verify, self._process
        writer, turn, takes, account = self._writer, self._turn, self._takes, self._account
        turn.until = until
        while True:
            try:
                request, address = take()
            except Exception as error:  # noqa: BLE001 - as in OneByOne
                takes.failed(self.source, error)
                return now
            if takes.fruitless:
                takes.succeeded(self.source)
            outcome = GOOD
            account.taken(request, now, address, self.source)
            try:
                if verify is None or verify(request, address):
                    process(request, address)
                else:
                    outcome = Outcome.REJECTED
                    account.judge(request, outcome)
                    self._server.shutdown_request(request)
            except Exception:  # noqa: BLE001 - as in OneByOne
                outcome = Outcome.ERROR
                account.judge(request, outcome)
                self._settle(request, address)
            except BaseException:
                self._abandon(request, now)
                raise
            now = account.returned(request, outcome)
            if now >= turn.until or writer.words[ORDER]:
                return now

    def _abandon(self, request: Any, since: int) -> None:  # noqa: ARG002 - the account knows
        self._account.judge(request, Outcome.ERROR)
        self._account.returned(request, Outcome.ERROR)
        self._server.shutdown_request(request)
