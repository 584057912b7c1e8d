"""Accounts: keeping the books where the few words that a lane writes by itself are not enough (worker).

A server that handles each request within ``process_request()`` has one in hand at a time, and the
lane knows when it is over. A server that overrides ``process_request()``, as ``ThreadingMixIn`` does,
returns early from it, so that several requests are in hand: ``Overlapping`` watches the calls that every
implementation ends in, on the worker's copy of the server object. The same place has the two
callables that some settings ask for: one for the access log, and one that reports to the master that an
idle worker has become busy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from socketserver import BaseServer
from time import monotonic_ns
from typing import Any, Final, Protocol

from prefork.workers.answers import Answer
from prefork.workers.cancel import cancelled_in
from prefork.workers.listener import Listener
from prefork.workers.scoreboard import HandshakeKind, PoolField, Scoreboard, SlotField
from prefork.workers.settings import Settings
from prefork.workers.slot_writer import IN_PROGRESS, REQUEST_NS, Outcome, SlotWriter
from prefork.workers.states import Rejection
from prefork.workers.worker.access import LogRequest
from prefork.workers.worker.cancelling import end_cancelled
from prefork.workers.worker.clients import outcome_of
from prefork.workers.worker.source import Source, Take
from prefork.workers.worker.standard import is_standard
from prefork.workers.worker.turn import AT_ONCE_NS

MOST_SHARED = 16
"""Short requests of one connection that share their books at most."""

EDGE: Final = "_prefork_edge"
"""The attribute of a server that has an edge (prefork/edge/edge.py)."""

MOST_CLIENTS: Final = 20
"""Clients of one worker that are named above its stacks."""

_PLACES: Final = {reason: place for place, reason in enumerate(Rejection)}

# Plain numbers: a member of an enumeration costs a look-up on its class each time.
_HANDSHAKES: Final = int(SlotField.TLS_HANDSHAKES)
_HANDSHAKE_NS: Final = int(SlotField.TLS_HANDSHAKE_NS)

_TAKE = -1
"""The key of a take that is under way among the requests in hand; theirs are ids of objects."""

BecameBusy = Callable[[], None]
"""Called when a request was taken for which the worker had been waiting."""


class Account(Protocol):
    """Hears of each request of a worker, and publishes what the scoreboard shows of it.

    most_shared: how many short requests of a connection may be noted together, by ``close_shared()``.
    wants_answers: whether ``note_answer()`` has a use.
    """

    most_shared: int
    wants_answers: bool

    def watched(self, take: Take) -> Take:
        """Return a take that counts as a request while it runs, because it may hang."""

    def taken(self, request: Any, since: int, address: Any, source: Source) -> None:
        """Note that a request was taken from the kernel. since: when, in monotonic nanoseconds."""

    def judge(self, request: Any, outcome: Outcome) -> None:
        """Note how a request goes that no thread has, before the calls that end it."""

    def returned(self, request: Any, outcome: Outcome) -> int:
        """Note that ``process_request()`` has returned; return since when the next request counts."""

    def note_end(self, ended: int) -> None:
        """Note when the request in hand ended, where the worker has waited since for the next one."""

    def next_on_connection(self, request: Any, ended: int, since: int) -> None:
        """Note that a good request ended, and that the next one of its connection is in hand."""

    def close_shared(self, count: int, duration_ns: int, since: int) -> None:
        """Note that good requests of one connection have ended, and since when the next one is in hand.

        count, duration_ns: how many, of SHORTEST_NS at most each, and their time together; 0 for none.
        """

    def note_client(self, request: Any, client: Any) -> None:
        """Note for whom a request is, where the edge has found out. client: a ``ClientAddress``."""

    def clients(self) -> list[Any]:
        """Return the addresses of the clients whose requests are in hand, as far as they are known."""

    def reject(self, request: Any, reason: Rejection) -> None:
        """Note that the edge refuses a request, before ``finish_request()`` returns."""

    def note_handshake(self, kind: HandshakeKind, duration_ns: int) -> None:
        """Count a TLS handshake that has succeeded."""

    def refuse(self, reason: Rejection) -> None:
        """Note that the handler refuses the request that it serves (in the handler's thread)."""

    def count_answer(self, place: int) -> None:
        """Count an answer of HTTP. place: among the counts of workers/answers.py."""

    def note_answer(self, answer: Answer) -> None:
        """Note for the access log what the handler has answered (in the handler's thread, before it ends)."""

    def publish(self) -> None:
        """Publish once more what is in hand."""

    def wait_finished(self) -> None:
        """Wait until nothing is in hand; the master bounds the wait."""


def account_for(
    servers: list[BaseServer],
    writer: SlotWriter,
    became_busy: BecameBusy | None = None,
    log_request: LogRequest | None = None,
    *,
    parks: bool = False,
) -> Account | None:
    """Return what has to hear of each request; None where that is nothing, so that no request pays for it.

    parks: whether handlers serve several requests of a connection one after the other.

    As soon as the requests of one server may overlap, those of all are accounted for together.
    """
    if any(may_overlap(type(server)) for server in servers):
        return Overlapping(writer, became_busy, log_request)
    if any(has_edge(server) or reports_answers(server.RequestHandlerClass) for server in servers):
        return OneJudged(writer, became_busy, log_request)
    if became_busy is None and log_request is None and not parks:
        return None
    return OneAtATime(writer, became_busy, log_request)


def has_edge(server: BaseServer) -> bool:
    """Return whether something stands before the handlers of a server, which reports to the account."""
    return EDGE in vars(server)


def reports_answers(handler: object) -> bool:
    """Return whether handlers of a class report their answers to the account, and what they refuse."""
    return bool(getattr(handler, "reports_answers", False))


def may_overlap(cls: type[BaseServer]) -> bool:
    """Return whether a worker may have several requests of a server of this class in hand."""
    return not is_standard(cls.process_request, BaseServer, "process_request")


def busy_call(
    settings: Settings, board: Scoreboard, call_master: Callable[[], object]
) -> BecameBusy | None:
    """Return what reports to the master that this worker has become busy; None without ``min_spare``.

    The master wants to know only while few workers are idle, and says so by a word of the scoreboard.
    """
    if settings.min_spare is None:
        return None
    watch = board.pool_word(PoolField.WATCH)

    def became_busy() -> None:
        if watch[0] == 1:
            call_master()

    return became_busy


def watched_take(take: Take, writer: SlotWriter) -> Take:
    """Return a take that shows as a request in hand while it runs, for a worker without threads.

    The deadline ``request_timeout`` then holds for what a class does in its ``get_request()``. A take that
    succeeds leaves the word for the lane, which writes it next. The lane's instant is a little earlier, because
    the lane read the clock before this take began. The master takes both for one request, for the beginning of
    a request never moves back otherwise (``Handle.view()``).
    """

    def watched() -> tuple[Any, Any]:
        writer.words[REQUEST_NS] = monotonic_ns()
        try:
            return take()
        except BaseException:
            writer.words[REQUEST_NS] = 0
            raise

    return watched


class OneAtATime:
    """The one request that a worker without threads has in hand."""

    def __init__(
        self,
        writer: SlotWriter,
        became_busy: BecameBusy | None = None,
        log_request: LogRequest | None = None,
    ) -> None:
        self._writer = writer
        self._became_busy = became_busy
        self._log_request = log_request
        self._since = self._ended = self._ended_at = 0
        self._source: Any = None
        self._address: Any = None
        self._waited: int | None = None
        self._answer: Answer | None = None
        self.most_shared = MOST_SHARED if log_request is None else 1
        self.wants_answers = log_request is not None

    def watched(self, take: Take) -> Take:
        """Do as ``Account.watched()`` says."""
        return watched_take(take, self._writer)

    def taken(self, request: Any, since: int, address: Any, source: Source) -> None:  # noqa: ARG002
        """Do as ``Account.taken()`` says."""
        self._writer.words[REQUEST_NS] = since
        self._since, self._address, self._source = since, address, source
        self._waited = source.waits.last if source.waits is not None else None
        # After the word: the master that is woken here must not count this worker as idle once more.
        if self._became_busy is not None and since - self._ended >= AT_ONCE_NS:
            self._became_busy()

    def judge(self, request: Any, outcome: Outcome) -> None:
        """Note nothing: ``returned()`` gets the outcome."""

    def returned(self, request: Any, outcome: Outcome) -> int:  # noqa: ARG002 - as Overlapping's
        """Note that the request is over; return since when the next one counts: a log line is not its time."""
        self._ended, self._ended_at = self._ended_at or monotonic_ns(), 0
        duration = self._ended - self._since
        self._writer.account(outcome, duration)
        if self._log_request is not None:
            self._log(outcome, duration)
            self._ended = monotonic_ns()
        return self._ended

    def note_end(self, ended: int) -> None:
        """Do as ``Account.note_end()`` says."""
        self._ended_at = ended

    def next_on_connection(self, request: Any, ended: int, since: int) -> None:  # noqa: ARG002 - as Overlapping's
        """Do as ``Account.next_on_connection()`` says."""
        writer = self._writer
        writer.account(Outcome.OK, ended - self._since)
        if self._log_request is not None:
            self._log(Outcome.OK, ended - self._since)
            since = monotonic_ns()  # a log line is not the next one's time
        writer.words[REQUEST_NS] = self._since = since
        self._waited = 0

    def _log(self, outcome: Outcome, duration: int) -> None:
        answer, self._answer = self._answer, None
        if self._log_request is not None:
            listener, address = self._source.listener, self._address
            self._log_request(listener, address, self._waited, outcome, duration, answer)

    def close_shared(self, count: int, duration_ns: int, since: int) -> None:
        """Do as ``Account.close_shared()`` says."""
        if count:
            self._writer.account_short(count, duration_ns)
        self._writer.words[REQUEST_NS] = self._since = since

    def note_client(self, request: Any, client: Any) -> None:  # noqa: ARG002 - as Overlapping's
        """Do as ``Account.note_client()`` says."""
        self._address = client

    def clients(self) -> list[Any]:
        """Do as ``Account.clients()`` says."""
        return [self._address] if self._writer.words[REQUEST_NS] else []

    def reject(self, request: Any, reason: Rejection) -> None:  # noqa: ARG002 - as Overlapping's
        """Do as ``Account.reject()`` says."""
        count_rejection(self._writer, reason)

    def refuse(self, reason: Rejection) -> None:
        """Do as ``Account.refuse()`` says."""
        self.reject(None, reason)

    def count_answer(self, place: int) -> None:
        """Do as ``Account.count_answer()`` says."""
        self._writer.count_answer(place)

    def note_answer(self, answer: Answer) -> None:
        """Do as ``Account.note_answer()`` says."""
        self._answer = answer

    def note_handshake(self, kind: HandshakeKind, duration_ns: int) -> None:
        """Do as ``Account.note_handshake()`` says."""
        count_handshake(self._writer, kind, duration_ns)

    def publish(self) -> None:
        """Publish that nothing is in hand: between two turns nothing is."""
        self._writer.words[REQUEST_NS] = 0

    def wait_finished(self) -> None:
        """Return at once: nothing is left in hand."""


class OneJudged(OneAtATime):
    """The same where an edge may find another client than the peer, or where edge or handler may refuse the request.

    This is a class of its own, so that servers without either do not pay for these questions.
    """

    def __init__(
        self,
        writer: SlotWriter,
        became_busy: BecameBusy | None = None,
        log_request: LogRequest | None = None,
    ) -> None:
        super().__init__(writer, became_busy, log_request)
        self._judged = Outcome.OK

    def judge(self, request: Any, outcome: Outcome) -> None:  # noqa: ARG002 - as Overlapping's
        """Do as ``Account.judge()`` says."""
        self._judged = outcome

    def reject(self, request: Any, reason: Rejection) -> None:
        """Do as ``Account.reject()`` says."""
        self._judged = Outcome.REJECTED
        super().reject(request, reason)

    def returned(self, request: Any, outcome: Outcome) -> int:
        """Note that the request is over; what was judged before counts."""
        judged, self._judged = self._judged, Outcome.OK
        return super().returned(request, judged or outcome)


def count_rejection(writer: SlotWriter, reason: Rejection) -> None:
    """Count a request that the edge refuses."""
    writer.add(SlotField.REJECTIONS + _PLACES[reason], 1)


def count_handshake(writer: SlotWriter, kind: HandshakeKind, duration_ns: int) -> None:
    """Count a handshake and its time."""
    words = writer.words
    try:
        words[_HANDSHAKES + kind] += 1
        words[_HANDSHAKE_NS] += duration_ns
    except ValueError:  # a stray write has filled one of them up
        writer.add(_HANDSHAKES + kind, 1)
        writer.add(_HANDSHAKE_NS, duration_ns)


class Overlapping:
    """The requests that a worker has in hand, by the ids of their objects.

    The worker has each server watched (``watch()``), and settles the steps of its source anew.

    A request begins when the lane has taken it, and is over at the first of these: its
    ``close_request()`` has returned, its ``process_request_thread()`` has returned (that may close
    another object, which was wrapped on the way, as TLS does), or ``process_request()`` has returned
    after it was finished in this very thread or had failed before any thread had it. Each of the
    calls can come from any thread. Closing what the lane never took counts nothing.
    """

    most_shared = 1

    def __init__(
        self,
        writer: SlotWriter,
        became_busy: BecameBusy | None = None,
        log_request: LogRequest | None = None,
    ) -> None:
        self._writer = writer
        self._became_busy = became_busy
        self._log_request = log_request
        self._changed = threading.Condition()
        self._since: dict[int, int] = {}  # in the order of arrival: the first is the oldest
        self._outcomes: dict[int, Outcome] = {}
        self._finished_in: dict[int, int] = {}  # the thread in which finish_request() ran
        self._seen: dict[int, tuple[Listener, Any, int | None]] = {}  # for the access log
        self._clients: dict[int, Any] = {}  # those that an edge knows
        self._served_by: dict[int, int] = {}  # the request that a thread serves, by the thread
        self._answers: dict[int, Answer] = {}
        self._idle_since = 0
        self.wants_answers = log_request is not None

    def watch(self, server: BaseServer) -> None:
        """Follow the requests of this server, on the worker's own copy of the object."""
        finish, close = server.finish_request, server.close_request
        server.finish_request = self._watched_finish(server, finish)  # type: ignore[method-assign]
        server.close_request = self._watched_end(close)  # type: ignore[method-assign]
        in_thread = getattr(server, "process_request_thread", None)  # ThreadingMixIn's
        if in_thread is not None:
            server.process_request_thread = self._watched_end(in_thread)  # type: ignore[attr-defined]

    def _watched_finish(
        self, server: BaseServer, finish: Callable[..., None]
    ) -> Callable[..., None]:
        def finish_request(request: Any, client_address: Any) -> None:
            thread = threading.get_ident()
            self._finished_in[id(request)] = thread
            self._served_by[thread] = id(request)
            try:
                finish(request, client_address)
            except BaseException as error:
                cancelled = cancelled_in(error) if self._is_apart() else None
                if cancelled is None or not end_cancelled(
                    server, request, client_address, cancelled
                ):
                    self._outcomes[id(request)] = outcome_of(request, error)
                    raise
                self._outcomes[id(request)] = Outcome.cancelled(cancelled.reason)
            finally:
                self._served_by.pop(thread, None)
            self._outcomes.setdefault(id(request), Outcome.OK)  # the edge may have judged

        return finish_request

    def _is_apart(self) -> bool:
        """Return whether this is a thread or a child for a request: no lane gets what is raised here.

        Neither of the two is asked to end, but its handler may raise RequestCancelled itself.
        ``ThreadingMixIn`` would leave the exception to the thread, ``ForkingMixIn`` to the end of the child.
        """
        is_main = threading.current_thread() is threading.main_thread()
        return not is_main or self._writer.is_detached

    def _watched_end(self, end: Callable[..., None]) -> Callable[..., None]:
        """Return a call that ends a request. If the call raises, the request is no good one."""

        def watched_end(request: Any, *address: Any) -> None:
            outcome = Outcome.ERROR
            try:
                end(request, *address)
                outcome = self._outcomes.get(id(request), Outcome.OK)
            finally:
                self._outcomes.pop(id(request), None)
                self._over(request, outcome)

        return watched_end

    def enter_fork(self) -> None:
        """Have a lock that is free (a child that a request's thread has forked).

        Another thread may have held the lock at the fork, and it is not here to release it. The end
        of the request in hand would wait for it for ever.
        """
        self._changed = threading.Condition()

    def watched(self, take: Take) -> Take:
        """Do as ``Account.watched()`` says."""

        def watched() -> tuple[Any, Any]:
            with self._changed:
                self._since[_TAKE] = monotonic_ns()
                self._publish()
            try:
                return take()
            finally:
                with self._changed:
                    self._since.pop(_TAKE, None)
                    self._publish()

        return watched

    def taken(self, request: Any, since: int, address: Any, source: Source) -> None:
        """Do as ``Account.taken()`` says."""
        if self._log_request is not None:
            waited = source.waits.last if source.waits is not None else None
            self._seen[id(request)] = source.listener, address, waited
        with self._changed:
            was_idle = not self._since and since - self._idle_since >= AT_ONCE_NS
            self._since[id(request)] = since
            self._publish()
        if was_idle and self._became_busy is not None:
            self._became_busy()

    def judge(self, request: Any, outcome: Outcome) -> None:
        """Do as ``Account.judge()`` says."""
        self._outcomes[id(request)] = outcome

    def note_client(self, request: Any, client: Any) -> None:
        """Do as ``Account.note_client()`` says."""
        self._clients[id(request)] = client
        if (seen := self._seen.get(id(request))) is not None:
            self._seen[id(request)] = seen[0], client, seen[2]

    def close_shared(self, count: int, duration_ns: int, since: int) -> None:
        """Do nothing: each request has books of its own."""

    def clients(self) -> list[Any]:
        """Do as ``Account.clients()`` says."""
        return list(self._clients.values())[:MOST_CLIENTS]

    def reject(self, request: Any, reason: Rejection) -> None:
        """Do as ``Account.reject()`` says."""
        self._outcomes[id(request)] = Outcome.REJECTED
        with self._changed:
            count_rejection(self._writer, reason)

    def refuse(self, reason: Rejection) -> None:
        """Do as ``Account.refuse()`` says."""
        if (served := self._served_here()) is not None:
            self._outcomes[served] = Outcome.REJECTED
        with self._changed:
            count_rejection(self._writer, reason)

    def count_answer(self, place: int) -> None:
        """Do as ``Account.count_answer()`` says."""
        with self._changed:
            self._writer.count_answer(place)

    def note_answer(self, answer: Answer) -> None:
        """Do as ``Account.note_answer()`` says."""
        if (served := self._served_here()) is not None:
            self._answers[served] = answer

    def _served_here(self) -> int | None:
        """Return the id of the request whose handler runs in the calling thread; None where none does.

        The handler cannot name the request: behind an edge with TLS it has another object than the lane.
        """
        return self._served_by.get(threading.get_ident())

    def note_handshake(self, kind: HandshakeKind, duration_ns: int) -> None:
        """Do as ``Account.note_handshake()`` says."""
        with self._changed:
            count_handshake(self._writer, kind, duration_ns)

    def returned(self, request: Any, outcome: Outcome) -> int:
        """Note that ``process_request()`` has returned; return since when the next request counts.

        The request is over when it failed before a thread had it, and when it was finished in
        this thread by an implementation that does not close it (a handler that keeps its socket).
        """
        finished_here = self._finished_in.get(id(request)) == threading.get_ident()
        if outcome or finished_here:
            self._over(request, self._outcomes.pop(id(request), outcome))
        return monotonic_ns()

    def note_end(self, ended: int) -> None:
        """Note nothing: the request is over when its connection is closed, or has been parked."""

    def next_on_connection(self, request: Any, ended: int, since: int) -> None:  # noqa: ARG002 - as OneAtATime's
        """Do as ``Account.next_on_connection()`` says."""
        if id(request) not in self._since:
            return  # the edge has given the handler another object: all its requests count as one
        seen = self._seen.get(id(request))
        self._over(request, Outcome.OK)
        with self._changed:
            if seen is not None:
                self._seen[id(request)] = seen
            self._since[id(request)] = since
            self._publish()

    def publish(self) -> None:
        """Do as ``Account.publish()`` says."""
        with self._changed:
            self._publish()

    def wait_finished(self) -> None:
        """Do as ``Account.wait_finished()`` says."""
        with self._changed:
            self._changed.wait_for(lambda: not self._since)

    def _over(self, request: Any, outcome: Outcome) -> None:
        with self._changed:
            since = self._since.pop(id(request), None)
            self._finished_in.pop(id(request), None)
            self._clients.pop(id(request), None)
            answer = self._answers.pop(id(request), None)
            if since is None:
                return
            now = monotonic_ns()
            self._writer.account(outcome, now - since)
            self._publish()
            self._idle_since = now
            seen = self._seen.pop(id(request), None)
            self._changed.notify_all()
        if self._log_request is not None and seen is not None:
            self._log_request(*seen, outcome, now - since, answer)

    def _publish(self) -> None:
        self._writer.words[IN_PROGRESS] = len(self._since)
        self._writer.words[REQUEST_NS] = next(iter(self._since.values()), 0)
