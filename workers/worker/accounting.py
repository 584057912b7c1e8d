"""Account for requests where the few words that the loop itself writes are not enough (worker).

A server that handles each request within ``process_request()`` has one in hand at a time, and the
loop knows when it is over. One that overrides ``process_request()``, as ``ThreadingMixIn`` does,
returns early: here the calls that every implementation ends in are watched on the worker's copy
of the server object. The same place tells a witness of each request, where a setting asks for one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from socketserver import BaseServer
from time import monotonic_ns
from typing import Any, Protocol

from prefork.workers.scoreboard import IN_PROGRESS, REQUEST_NS, Outcome, SlotWriter
from prefork.workers.worker.source import Source
from prefork.workers.worker.witness import Witness

AT_ONCE_NS = 8_000
"""A wait shorter than this did not sleep: there is a queue."""


class Account(Protocol):
    """Hears of each request of a worker, and publishes what the scoreboard has of it."""

    def taken(self, request: Any, since: int, address: Any, source: Source) -> None:
        """Note that a request was taken from the kernel at that time (monotonic nanoseconds)."""

    def judge(self, request: Any, outcome: Outcome) -> None:
        """Note how a request goes that no thread has, before the calls that end it."""

    def returned(self, request: Any, outcome: Outcome) -> int:
        """Note that ``process_request()`` has returned; return from when on the next request counts."""

    def wait_finished(self) -> None:
        """Wait until nothing is in hand."""


def account_for(
    sources: list[Source], writer: SlotWriter, witness: Witness | None
) -> Account | None:
    """Return who hears of each request; None where the words that a lane itself writes are enough.

    Where requests overlap, the servers are watched from then on, and their sources are settled anew.
    """
    overlapping = overlapping_requests([source.server for source in sources], writer)
    if overlapping is not None:
        overlapping.witness = witness
        for source in sources:
            source.settle_steps()
        return overlapping
    return OneAtATime(writer, witness) if witness is not None else None


class OneAtATime:
    """The one request that a worker without threads has in hand, and its witness."""

    def __init__(self, writer: SlotWriter, witness: Witness) -> None:
        self._writer = writer
        self._witness = witness
        self._since = self._ended = 0
        self._source: Any = None
        self._address: Any = None
        self._waited: int | None = None

    def taken(self, request: Any, since: int, address: Any, source: Source) -> None:  # noqa: ARG002
        """Note that a request was taken from the kernel at that time (monotonic nanoseconds)."""
        self._writer.words[REQUEST_NS] = since
        self._since, self._address, self._source = since, address, source
        self._waited = source.waits.last if source.waits is not None else None
        self._witness.begins(since - self._ended >= AT_ONCE_NS)

    def judge(self, request: Any, outcome: Outcome) -> None:
        """Nothing to note: ``returned()`` is told."""

    def returned(self, request: Any, outcome: Outcome) -> int:  # noqa: ARG002 - as Overlapping's
        """Note that the request is over; return from when on the next one counts."""
        duration = monotonic_ns() - self._since
        self._writer.account(outcome, duration)
        self._witness.ends(self._source, self._address, self._waited, outcome, duration)
        self._ended = monotonic_ns()
        return self._ended

    def wait_finished(self) -> None:
        """Nothing to wait for."""


def overlapping_requests(servers: list[BaseServer], writer: SlotWriter) -> Overlapping | None:
    """Return the account for a worker that serves all of these, None where requests do not overlap."""
    if all(type(server).process_request is BaseServer.process_request for server in servers):
        return None
    overlapping = Overlapping(writer)
    for server in servers:
        overlapping.watch(server)
    return overlapping


class Overlapping:
    """The requests that a worker has in hand, by the ids of their objects."""

    def __init__(self, writer: SlotWriter) -> None:
        self._writer = writer
        self._changed = threading.Condition()
        self._since: dict[int, int] = {}  # in the order of arrival: the first is the oldest
        self._outcomes: dict[int, Outcome] = {}
        self._finished_in: dict[int, int] = {}  # the thread in which finish_request() ran
        self.witness: Witness | None = None
        self._seen: dict[int, tuple[Source, Any, int | None]] = {}  # what the witness asks for
        self._idle_since = 0

    def watch(self, server: BaseServer) -> None:
        """Follow the requests of this server (worker; on its own copy of the object)."""
        finish, close = server.finish_request, server.close_request
        server.finish_request = self._watched_finish(finish)  # type: ignore[method-assign]
        server.close_request = self._watched_close(close)  # type: ignore[method-assign]
        in_thread = getattr(server, "process_request_thread", None)
        if (
            in_thread is not None
        ):  # ThreadingMixIn's: it may finish another object, wrapped on the way
            server.process_request_thread = self._watched_thread(in_thread)  # type: ignore[attr-defined]

    def _watched_finish(self, finish: Callable[..., None]) -> Callable[..., None]:
        def finish_request(request: Any, client_address: Any) -> None:
            self._finished_in[id(request)] = threading.get_ident()
            try:
                finish(request, client_address)
            except BaseException:
                self._outcomes[id(request)] = Outcome.ERROR
                raise
            self._outcomes[id(request)] = Outcome.OK

        return finish_request

    def _watched_thread(self, run: Callable[..., None]) -> Callable[..., None]:
        def process_request_thread(request: Any, client_address: Any) -> None:
            try:
                run(request, client_address)
            finally:
                self._over(request, self._outcomes.pop(id(request), Outcome.OK))

        return process_request_thread

    def _watched_close(self, close: Callable[..., None]) -> Callable[..., None]:
        def close_request(request: Any) -> None:
            try:
                close(request)
            finally:
                self._over(request, self._outcomes.pop(id(request), Outcome.OK))

        return close_request

    def taken(
        self, request: Any, since: int, address: Any = None, source: Source | None = None
    ) -> None:
        """Note that a request was taken from the kernel at that time (monotonic nanoseconds)."""
        with self._changed:
            was_idle = not self._since and since - self._idle_since >= AT_ONCE_NS
            self._since[id(request)] = since
            self._publish()
        if self.witness is not None and source is not None:
            waited = source.waits.last if source.waits is not None else None
            self._seen[id(request)] = source, address, waited
            self.witness.begins(was_idle)

    def judge(self, request: Any, outcome: Outcome) -> None:
        """Note how a request goes that no thread has, before the calls that end it."""
        self._outcomes[id(request)] = outcome

    def returned(self, request: Any, outcome: Outcome) -> int:
        """Note that ``process_request()`` has returned; return from when on the next request counts.

        The request is over when it failed before a thread had it, and when it was finished in
        this thread by an implementation that does not close it (a handler that keeps its socket).
        """
        finished_here = self._finished_in.get(id(request)) == threading.get_ident()
        if outcome or finished_here:
            self._over(request, self._outcomes.pop(id(request), outcome))
        return monotonic_ns()

    def wait_finished(self) -> None:
        """Wait until nothing is in hand; the master bounds it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._since)

    def _over(self, request: Any, outcome: Outcome) -> None:
        with self._changed:
            since = self._since.pop(id(request), None)
            self._finished_in.pop(id(request), None)
            if since is None:
                return
            now = monotonic_ns()
            self._writer.account(outcome, now - since)
            self._publish()
            self._idle_since = now
            seen = self._seen.pop(id(request), None)
            self._changed.notify_all()
        if self.witness is not None and seen is not None:
            source, address, waited = seen
            self.witness.ends(source, address, waited, outcome, now - since)

    def _publish(self) -> None:
        self._writer.words[IN_PROGRESS] = len(self._since)
        self._writer.words[REQUEST_NS] = next(iter(self._since.values()), 0)
