"""Lanes: the ways in which a worker serves the requests of one source (worker).

A lane takes requests from its source, makes the calls that ``BaseServer`` makes for each, in the same
order, and accounts for each request on the scoreboard:

    take → open the books → verify → process → close the books → take the next one

``take`` stands for ``get_request()``, ``verify`` for ``verify_request()``, and ``process`` for
``process_request()``, which runs the handler and closes the request; the source says what does the work
of each. If the handler raises an Exception, ``handle_error()`` is called and the request is ended. If it
raises RequestCancelled, ``request_cancelled()`` is called in place of that. If it raises something else, such
as SystemExit, the request is ended and the exception ends the worker.

There are three lanes, which differ in how they keep the books:

- ``OneByOne`` has one request in hand at a time and writes a few plain words of the scoreboard.
- ``Accounted`` reports each request to an account (accounting.py): where requests overlap, for the
  access log, and where the master has to know that an idle worker has become busy.
- ``Rounds`` (rounds.py) serves queued datagrams of a plain server and accounts for up to sixteen at once.

The loop chooses the lane of a source before it serves, and again if ``worker_init()`` may have changed
the server object. From then on the lane loops by itself until its turn is over. So the questions what
kind of request this is, and what has to be noted of it, are answered once for each source and not for
each request. For the same reason the bodies of ``OneByOne`` and ``Accounted`` read alike: a shared body
would have to ask. One list of scenarios holds them to the same behaviour (tests/unit/test_lanes.py).
"""

from __future__ import annotations

import functools
import logging
import select
from collections.abc import Callable
from socketserver import ForkingMixIn, ThreadingMixIn
from time import monotonic_ns
from typing import Any

from prefork.workers import log
from prefork.workers.cancel import RequestCancelled, cancelled_in
from prefork.workers.slot_writer import ORDER, REQUEST_NS, Outcome, SlotWriter
from prefork.workers.states import WorkerState
from prefork.workers.worker.accounting import Account, watched_take
from prefork.workers.worker.admission import Admission
from prefork.workers.worker.cancelling import Cancelling
from prefork.workers.worker.client_check import ClientCheck
from prefork.workers.worker.clients import outcome_of
from prefork.workers.worker.source import Process, Source, Take
from prefork.workers.worker.surroundings import Surroundings
from prefork.workers.worker.takes import Takes, has_no_process
from prefork.workers.worker.trimming import Trimming
from prefork.workers.worker.turn import Turn

PATIENCE_NS = 10_000_000_000
"""Nanoseconds for which a request waits for a thread or a process of its own; then its client is dropped."""

GOOD = Outcome.OK  # an enum's look-up costs as much as a frame


class Common:
    """What all lanes of one worker have in common.

    The master makes it and the lanes just before the fork: in the worker, code that runs for the
    first time would copy 70 KiB of pages. The worker adds what only the worker can have (``begin()``).

    turn: when a lane returns to the loop. takes: what to do about takes that fail. client_check: looks whether
    clients have gone; None where the setting is off. admission: refuses
    requests; None where nothing is to be refused. cancelling: ends requests. identity: names the worker in the log. epoll: where the worker waits for its listeners.
    """

    identity = ""
    epoll: select.epoll
    surroundings: Surroundings | None = None
    """What is put back after each request; None where the setting is off."""

    def __init__(
        self,
        writer: SlotWriter,
        account: Account | None = None,
        turn: Turn | None = None,
        client_check: ClientCheck | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.writer = writer
        self.account = account
        self.turn = turn or Turn()
        self.takes = Takes(writer)
        self.trimming = Trimming(writer)
        self.client_check = client_check
        self.admission = admission
        self.cancelling = Cancelling(writer, None if client_check is None else client_check.is_gone)

    def begin(self, identity: str, epoll: select.epoll, pause: Callable[[], None]) -> None:
        """Add what the worker has. pause: waits a little before a take that will probably fail."""
        self.identity = identity
        self.epoll = epoll
        self.takes.begin(identity, pause)
        self.cancelling.begin(identity)
        self.trimming.begin()
        if self.admission is not None:
            self.admission.begin(identity)

    def publish(self) -> None:
        """Publish that the worker serves, and what it has in hand; called between two turns of a lane.

        This is on the scoreboard already, unless another process has written over it. The master would
        then take an idle worker for one that is late.
        """
        self.writer.become(WorkerState.IDLE)
        if self.account is None:
            self.writer.words[REQUEST_NS] = 0
        else:
            self.account.publish()


class Lane:
    """One way to serve one source. If the steps of the source are settled anew, so is the lane made anew."""

    for_queue: Lane | None = None
    """The lane to use in place of this one while requests are queued, if those can share costs."""

    def __init__(self, source: Source, common: Common) -> None:
        self.source = source
        self._server = source.server
        self._take = source.take
        self._verify = source.verify
        if common.admission is not None:
            self._verify = common.admission.verify_for(source)
        self._process = _guarded(source, common)
        self._common = common
        self._writer = common.writer
        self._turn = common.turn
        self._takes = common.takes
        if source.may_hang:
            self._take = self._watched(source.take)

    def serve(self, now: int, until: int) -> int:
        """Serve one request, and go on with what is queued until an instant; return when that ended.

        now, until: monotonic nanoseconds. With ``until`` not after ``now``, the lane serves one
        request, or one round. It returns early if nothing is queued, if the master has given an order,
        and if the turn was ended. Returns ``now`` if there was nothing to take. Raises what ends the
        worker: an exception of the handler that is no Exception, or the loss of the listening socket.
        """
        raise NotImplementedError

    def _watched(self, take: Take) -> Take:
        """Return a take that is under the deadline of a request."""
        return watched_take(take, self._common.writer)

    def _settle(self, request: Any, address: Any) -> None:
        """End a request whose handler raised; called within the ``except`` clause, so that handle_error() sees it.

        ``BaseServer`` makes the same two calls, and an exception of either ends the server. Here an
        exception is logged and costs this request only, and the second call is made in any case.
        """
        self._try(functools.partial(self._server.handle_error, request, address))
        self._try(functools.partial(self._server.shutdown_request, request))

    def _cancel(self, request: Any, address: Any, cancelled: RequestCancelled) -> Outcome:
        """End a request that was asked to end; return its outcome."""
        self._common.cancelling.end(self._server, request, address, cancelled)
        self._try(functools.partial(self._server.shutdown_request, request))
        return Outcome.cancelled(cancelled.reason)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - costs this request, not the worker
            what = "could not end a failed request properly"
            log.failure(logging.ERROR, self._common.identity, what, error)

    def _abandon(self, request: Any, since: int) -> None:
        """End the request that ends the worker."""
        self._writer.account(Outcome.ERROR, monotonic_ns() - since)
        self._server.shutdown_request(request)


class OneByOne(Lane):
    """One request in hand at a time, accounted for by a few plain words of the scoreboard."""

    def serve(self, now: int, until: int) -> int:
        """Serve as ``Lane.serve()`` says."""
        # The hot path. Everything that Python does here costs two or three times what it costs in a
        # tight loop, because the caches are cold after each system call. A call of Python costs 0.1 µs,
        # where a connection takes 14 and a datagram 5. So the whole way of a request is in one
        # function, and what each request needs is in local variables.
        #
        # The clock is read once for each request: the instant at which one ends is the one from which
        # the next counts, since the lane takes the next at once or returns. The same reading is
        # compared with the end of the turn. REQUEST_NS, since when a request is in hand, is all that
        # the master needs for a deadline; the master takes a worker with a 0 there for idle.
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
            # Through the writer each time: in a process that a handler has forked it has other words.
            writer.words[REQUEST_NS] = now
            try:
                if verify is None or verify(request, address):
                    process(request, address)
                else:
                    outcome = Outcome.REJECTED
                    self._server.shutdown_request(request)
            except Exception as error:  # noqa: BLE001 - handle_error() is where the server class says what to do
                outcome = outcome_of(request, error)
                self._settle(request, address)
            except BaseException as error:
                cancelled = cancelled_in(error)
                if cancelled is None:
                    self._abandon(request, now)
                    raise
                outcome = self._cancel(request, address, cancelled)
            since, now = now, monotonic_ns()
            writer.account(outcome, now - since)
            if now >= turn.until or writer.words[ORDER]:
                return now


class Accounted(Lane):
    """As ``OneByOne``, with an account that is called for each request and keeps the books."""

    def __init__(self, source: Source, common: Common, account: Account) -> None:
        self._account = account
        super().__init__(source, common)
        if isinstance(source.server, ThreadingMixIn | ForkingMixIn):
            self._process = _patient(self._process, source, common.takes)

    def _watched(self, take: Take) -> Take:
        return self._account.watched(take)

    def serve(self, now: int, until: int) -> int:
        """Serve as ``Lane.serve()`` says."""
        # The same way as in OneByOne, with three calls of the account: when a request was taken;
        # before a request that did not go well is ended, because the account may take the call that
        # ends it for the end of a good one; and when process_request() has returned.
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
            except Exception as error:  # noqa: BLE001 - as in OneByOne
                outcome = outcome_of(request, error)
                account.judge(request, outcome)
                self._settle(request, address)
            except BaseException as error:
                cancelled = cancelled_in(error)
                if cancelled is None:
                    self._abandon(request, now)
                    raise
                outcome = Outcome.cancelled(cancelled.reason)
                account.judge(request, outcome)
                self._cancel(request, address, cancelled)
            now = account.returned(request, outcome)
            if now >= turn.until or writer.words[ORDER]:
                return now

    def _abandon(self, request: Any, since: int) -> None:  # noqa: ARG002 - the account knows
        self._account.judge(request, Outcome.ERROR)
        self._account.returned(request, Outcome.ERROR)
        self._server.shutdown_request(request)


def _guarded(source: Source, common: Common) -> Process:
    """Return what processes a request of this source, with what settings want before and after it."""
    process = source.process
    if common.client_check is not None and source.has_connections:
        process = common.client_check.checked(process)
    if common.admission is not None:
        process = common.admission.process_for(process)
    if common.surroundings is not None:
        process = common.surroundings.restored_after(process)
    return process


def _patient(process: Process, source: Source, takes: Takes) -> Process:
    """Return a ``process_request()`` that waits where the system has no thread or process for it.

    At the limit of processes each call fails at once. Without a pause this worker, which seems to be
    free all the time, would take most clients and drop every one of them. So it keeps the request in
    hand, as a worker without a descriptor leaves it in the queue, and tries again for PATIENCE_NS.
    Threads of this worker may end meanwhile.
    """
    # Not a method of the lane, which keeps the function: a circle would keep the lane in the master.

    def patient(request: Any, address: Any) -> None:
        give_up_at = 0
        while True:
            try:
                process(request, address)
            except Exception as error:
                now = monotonic_ns()
                give_up_at = give_up_at or now + PATIENCE_NS
                if not has_no_process(error) or now >= give_up_at:
                    raise
                takes.wait_for_process(source, error)
            else:
                if takes.fruitless:
                    takes.succeeded(source)
                return

    return patient
