"""The edge of one server: what a connection goes through before ``handle()`` (worker).

    accept → PROXY header → address rules → TLS → authentication → finish_request() → handle()

Each part is a *step*: a function that takes a ``Passage``, adds to it what it has found out, and
raises ``Refused`` to end the connection. A server has the steps that its settings ask for. They are
chosen once, when the server is made ready (setup.py). A server without any step has no edge at all.

The edge runs in ``finish_request()``, for three reasons. All ways of socketserver lead there:
``serve_forever()``, ``handle_request()``, and the threads of ``ThreadingMixIn``, where a client that
stalls holds its own thread only. The worker waits there, and neither the master nor another worker. And
the time spent is part of the request, so that the deadlines of a request hold for the edge, too.

``install()`` gives the server object a ``finish_request()`` of its own, which hides the one of its class
and calls it afterwards. A server without an edge keeps its method, so it pays nothing.

**Whose request it is.** A server that expects PROXY headers learns its client only in the edge. Then
``verify_request()`` runs there, with the client's address. The call that socketserver makes earlier
gets a method that accepts everybody. For the same reason the edge calls ``handle_error()`` itself when
a handler raises, and ``request_cancelled()`` when a request was asked to end: the call gets the client's
address and the socket that the handler had. ``max_per_client`` counts the client that the edge has found, as
soon as it is known.

**Parked connections** have been through the edge, and only the address rules are asked again: those of a
reload hold for the connections from before it, too.

**Refusals.** A refused connection is closed. It costs one count, by its reason, and at most one line
of the log a second. It never reaches ``handle_error()``.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final

import msgspec

from prefork.edge.client import ProxyFacts, is_plain_address, unpacked
from prefork.edge.passage import Passage, Refused
from prefork.workers import log
from prefork.workers.cancel import cancelled_in
from prefork.workers.slot_writer import Outcome
from prefork.workers.states import Rejection
from prefork.workers.worker.accounting import EDGE
from prefork.workers.worker.admission import admits
from prefork.workers.worker.cancelling import end_cancelled
from prefork.workers.worker.clients import client_facts, outcome_of
from prefork.workers.worker.side import current_account, current_worker

Step = Callable[[Passage], None]
"""One part of the edge. Raises Refused, OSError of the client's doing, or what code of the program raises."""

End = Callable[[Any, bool], None]
"""Ends what a step has wrapped around the socket: called with the request, and whether all went well."""

INTERVAL: Final = 1.0
"""The least number of seconds between two lines about refusals of one server in one process."""


class Edge(msgspec.Struct, frozen=True):
    """What stands before the handlers of one server.

    timeout: seconds for all steps together. steps: in their order. end: ends the request that the
    handler had; None where the server's own ``shutdown_request()`` is all that is needed. rules: the one of
    the steps that holds a client to the address rules; None without rules. is_proxy: whether a peer has to
    send a PROXY header; None where no peer has. is_datagram: requests are datagrams, so that there is
    no connection to wait for.
    verifies: whether ``verify_request()`` has to wait for a step. refusals: the log of refusals.
    certificates: those that the server shows. watched: files whose change asks for a reload, with
    their stamps from before they were read.
    made_from: the settings, to see whether they have changed.
    """

    timeout: float
    steps: Sequence[Step]
    refusals: Refusals
    end: End | None = None
    rules: Step | None = None
    is_proxy: Callable[[Any], bool] | None = None
    is_datagram: bool = False
    verifies: bool = False
    certificates: Sequence[Any] = ()
    watched: Mapping[str, Any] = {}
    made_from: Any = None


class Refusals:
    """The refused connections of one server, in one process: counted, and logged once a second at most."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.counts: Counter[Rejection] = Counter()
        self._clock = clock
        self._lock = threading.Lock()
        self._quiet_until = 0.0
        self._others = 0

    def note(self, reason: Rejection, passage: Passage, error: BaseException) -> None:
        """Count a refusal, and log it unless the previous line is less than a second old.

        The ``others`` of a line are the refusals since the previous line that had no line.
        """
        now = self._clock()
        with self._lock:
            self.counts[reason] += 1
            if now < self._quiet_until:
                self._others += 1
                return
            others, self._others = self._others, 0
            self._quiet_until = now + INTERVAL
        log.event(
            logging.WARNING,
            str(current_worker() or "master"),
            "refused a client",
            reason=reason.value,
            **client_facts(passage.address()),
            error=error,
            others=others,
        )


def install(server: Any, edge: Edge) -> None:
    """Put an edge before the handlers of a server object, in place of an earlier one."""
    remove(server)
    own = vars(server)
    own[EDGE] = edge
    behind = own.get("finish_request")
    # A strong reference would be a circle, and the program alone decides how long its object lives.
    ref = weakref.ref(server)

    def finish_request(request: Any, client_address: Any) -> None:
        this = ref()
        finish = behind or _method(this, "finish_request")
        _finish(this, edge, finish, request, client_address)

    finish_request.behind = behind  # type: ignore[attr-defined]
    server.finish_request = finish_request
    if edge.verifies:
        server.verify_request = _accept_for_now


def remove(server: Any) -> None:
    """Take the edge of a server object away again."""
    own = vars(server)
    edge = own.pop(EDGE, None)
    if edge is None:
        return
    finish = own.pop("finish_request", None)
    if (behind := getattr(finish, "behind", None)) is not None:
        server.finish_request = behind
    if own.get("verify_request") is _accept_for_now:
        del own["verify_request"]


def edge_of(server: Any) -> Edge | None:
    """Return the edge of a server object, None for a server without one."""
    edge: Edge | None = vars(server).get(EDGE)
    return edge


def _accept_for_now(_request: Any, _client_address: Any) -> bool:
    """Stand for ``verify_request()`` until the edge knows the client."""
    return True


def _method(server: Any, name: str) -> Callable[..., Any]:
    """Return a method of the server's class, whatever the object has under that name."""
    method: Callable[..., Any] = getattr(type(server), name).__get__(server)
    return method


def _finish(
    server: Any, edge: Edge, finish: Callable[[Any, Any], None], request: Any, address: Any
) -> None:
    """Do what ``finish_request()`` does, for a client that the edge admits."""
    luggage = getattr(request, "luggage", None)
    if luggage is not None and _was_admitted(edge, luggage, address):
        _finish_returned(server, edge, finish, request, _returned(luggage, address))
        return
    passage = Passage(request, address, edge.timeout)
    if not _is_admitted(server, edge, passage):
        if edge.end is not None:
            edge.end(passage.request, False)
        return
    went_well = False
    try:
        went_well = _handle(
            server,
            finish,
            request,
            passage.request,
            passage.address(),
            is_check=passage.is_trusted,
        )
    finally:
        if edge.end is not None:
            edge.end(passage.request, went_well)


def _was_admitted(edge: Edge, luggage: Any, address: Any) -> bool:
    """Return whether a connection that comes back from the lot has been through an edge like this one.

    Not so: a connection that was parked before its first request, and one from the time before a reload
    when the server had no edge, or did not encrypt. What is encrypted is never parked.
    """
    if luggage.is_new or edge.end is not None:
        return False
    return luggage.client is not None or not is_plain_address(address)


def _returned(luggage: Any, address: Any) -> Any:
    """Return the client of a connection that was parked."""
    return address if luggage.client is None else unpacked(address, luggage.client)


def _finish_returned(
    server: Any, edge: Edge, finish: Callable[[Any, Any], None], request: Any, client: Any
) -> None:
    """Do the same for a connection that was parked: its client is known, but the rules may be new."""
    passage = Passage(request, client, edge.timeout)
    passage.proxy = getattr(client, "proxy", None)
    passage.is_trusted = _speaks_for_itself(edge, passage.proxy, client)
    try:
        if edge.rules is not None:
            edge.rules(passage)
        refuse_too_many(passage)
    except Refused as refusal:
        _refuse(edge, request, passage, refusal.reason, refusal)
    else:
        _handle(server, finish, request, request, client)


def _speaks_for_itself(edge: Edge, proxy: ProxyFacts | None, client: Any) -> bool:
    """Return whether a parked connection is that of a proxy without a client, and the peer still is a proxy."""
    if proxy is None or not proxy.is_local or edge.is_proxy is None:
        return False
    return edge.is_proxy(client.peer)


def _is_admitted(server: Any, edge: Edge, passage: Passage) -> bool:
    """Take a connection through the steps. Return False for one that is refused, with everything noted."""
    taken = passage.request
    before = None if edge.is_datagram else taken.gettimeout()
    try:
        _take_through(edge, passage)
    except Refused as refusal:
        _refuse(edge, taken, passage, refusal.reason, refusal)
    except TimeoutError as error:
        _refuse(edge, taken, passage, Rejection.TIMEOUT, error)
    except OSError as error:
        if not passage.is_trusted:  # a health check ends like this, and nothing is wrong then
            _refuse(edge, taken, passage, Rejection.GONE, error)
    except Exception as error:  # noqa: BLE001 - code of the program, such as authenticate()
        _fail(server, taken, passage.request, passage.address(), error)
    else:
        if not edge.verifies or _is_verified(server, edge, taken, passage):
            # To set a timeout is a system call, and to ask for it is none.
            if not edge.is_datagram and passage.request.gettimeout() != before:
                passage.request.settimeout(before)
            return True
    return False


def _take_through(edge: Edge, passage: Passage) -> None:
    for step in edge.steps:
        step(passage)


def refuse_too_many(passage: Passage) -> None:
    """Hold the worker for the client, unless that client has ``max_per_client`` of them: a step.

    The step comes as soon as the client is known, and before all that waits for the client. A client that
    stalls in a handshake holds its worker as one does that stalls in a handler.
    """
    if not passage.is_trusted and not admits(passage.client):
        raise Refused(Rejection.PER_CLIENT, "the client holds max_per_client workers already")


def _is_verified(server: Any, edge: Edge, taken: Any, passage: Passage) -> bool:
    """Ask ``verify_request()``. Return False where it excludes the client or raises, with everything noted.

    As without an edge, all its exceptions go to ``handle_error()``.
    """
    verify = _method(server, "verify_request")
    try:
        if verify(passage.request, passage.address()):
            return True
    except Exception as error:  # noqa: BLE001 - code of the program
        _fail(server, taken, passage.request, passage.address(), error)
        return False
    refusal = Refused(Rejection.VERIFY, "verify_request() returned False")
    _refuse(edge, taken, passage, refusal.reason, refusal)
    return False


def _refuse(
    edge: Edge, taken: Any, passage: Passage, reason: Rejection, error: BaseException
) -> None:
    account = current_account()
    if account is not None:
        account.note_client(taken, passage.address())
        account.reject(taken, reason)
    edge.refusals.note(reason, passage, error)


def _handle(
    server: Any,
    finish: Callable[[Any, Any], None],
    taken: Any,
    request: Any,
    address: Any,
    *,
    is_check: bool = False,
) -> bool:
    """Run the handler; return whether it raised nothing.

    taken: the request as the worker knows it. request: what the handler gets. is_check: a proxy
    speaks for itself. Most of its health checks reset the connection as soon as it is open, which is
    no error of the handler.
    """
    account = current_account()
    if account is not None:
        account.note_client(taken, address)
    try:
        finish(request, address)
    except Exception as error:  # noqa: BLE001 - handle_error() is where the server class says what to do
        # A proxy that is connected cannot refuse a connection: another server has done this.
        is_refusal = isinstance(error, ConnectionRefusedError)
        if is_check and isinstance(error, ConnectionError) and not is_refusal:
            return False
        _fail(server, taken, request, address, error)
        return False
    except BaseException as error:
        cancelled = cancelled_in(error)
        if cancelled is None or account is None:
            raise
        if not end_cancelled(server, request, address, cancelled):
            raise
        account.judge(taken, Outcome.cancelled(cancelled.reason))
        return False
    return True


def _fail(server: Any, taken: Any, request: Any, address: Any, error: Exception) -> None:
    """Have the server handle the exception of a request; called in an ``except`` clause."""
    account = current_account()
    if account is not None:
        account.judge(taken, outcome_of(request, error))
    server.handle_error(request, address)
