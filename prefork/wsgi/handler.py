"""Between a connection and a WSGI application: one request, and whether the connection goes on (worker)."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterable
from socketserver import BaseRequestHandler, ThreadingMixIn
from time import monotonic
from typing import Any, ClassVar, Final

from prefork.parking.handler import ParkingMixIn
from prefork.runs import run_of
from prefork.workers.cancel import RequestCancelled
from prefork.workers.worker.clients import client_name, is_clients_doing
from prefork.workers.worker.limited_lines import LimitedLines
from prefork.workers.worker.side import current_worker
from prefork.workers.worker.source import CLIENT_TIMEOUT
from prefork.wsgi.books import report_answer, report_refusal
from prefork.wsgi.environ import base_environ, environ_of
from prefork.wsgi.error_stream import ErrorStream
from prefork.wsgi.forwarded import Forwarded
from prefork.wsgi.head import Head, RefusedRequest, parse_head
from prefork.wsgi.incoming import PIECE, Body, ChunkedBody, Incoming, LengthBody, NoBody
from prefork.wsgi.limits import Limits, limits_of
from prefork.wsgi.response import FileWrapper, Response, plain_answer
from prefork.wsgi.wire import Wire

MOST_UNREAD: Final = 256 * 1024
"""Bytes of a body that the application has not read, which are read for it so that the connection can go on."""

UNREAD_TIME: Final = 1.0
"""Seconds for that, and for what the client still sends after the last answer."""

SILENCE: Final = 0.05
"""Seconds without a byte after the last answer, which show that the client has sent everything."""


class ApplicationError(Exception):
    """An application has raised an exception that its server would take for the doing of the client.

    A lost connection to a database is an example: the server logs the ConnectionError of a handler as
    "client went away". What an application raises by itself is never that, because the connection
    of its client belongs to the server. The exception is the ``__cause__`` of this one.
    """


class WSGIHandler(ParkingMixIn, BaseRequestHandler):
    """Serves the requests of one connection with a WSGI application, and parks the connection in between.

    application: the callable. ``handler_for()`` makes a class with it.

    What follows from an exception of the application: where nothing was sent yet, the client gets a 500
    without a word of the exception. Otherwise the answer ends without its proper end, which clients
    notice. In both cases the connection is closed, and the server's ``handle_error()`` logs the traceback.
    After ``sys.exit()`` the same is answered, and then the worker ends.
    """

    application: ClassVar[Any] = None

    reports_answers: ClassVar[bool] = True
    """What tells the pool that the handlers report their answers, and the requests that they refuse."""

    sets_timeouts: ClassVar[bool] = True
    """What tells the pool that ``client_timeout`` is this class's business (``Source``)."""

    _incoming: Incoming
    _wire: Wire

    def setup(self) -> None:
        """Begin with what an earlier handler of this connection has read ahead."""
        self._wire = Wire(self.request, getattr(self.server, CLIENT_TIMEOUT, None))
        self._incoming = Incoming(self._wire, self._luggage.read_ahead)

    def announces_end(self) -> bool:
        """Return True: an answer says whether its connection ends."""
        return True

    def fetch_ahead(self) -> None:
        """Read what has arrived of the next request."""
        self._incoming.fetch()

    def take_read_ahead(self) -> bytes:
        """Return what was read and belongs to the next request."""
        return self._incoming.ahead

    def handle(self) -> None:
        """Serve one request."""
        self.close_connection = True  # until the answer is complete
        serving = _serving(self.server)
        limits = serving.limits
        data = None
        try:
            data = self._incoming.read_head(limits.head, limits.head_time)
            if data is None:
                return
            head = parse_head(data, most_fields=limits.fields, most_body=limits.body)
            forwarded = limits.trust and limits.trust(head.fields, self.client_address)
        except RefusedRequest as refusal:
            self._refuse(refusal, data or b"")
            return
        try:
            self._answer(head, serving, forwarded)
        finally:
            if serving.errors.begun:
                serving.errors.flush()

    def _answer(self, head: Head, serving: _Serving, forwarded: Forwarded | None) -> None:
        keeps = head.keeps_alive and not self.pool_is_closing()
        response = Response(self._wire, head, keeps=keeps)
        body = self._body_of(head, serving.limits, response)
        environ = environ_of(head, serving.environ, self.client_address, forwarded)
        environ["wsgi.input"] = body.file
        try:
            self._run(environ, response, body)
        except RefusedRequest as refusal:
            if response.is_begun:
                raise
            self._refuse(refusal, head=head)
        except RequestCancelled:
            # Answered here, where it is known whether an answer has begun.
            if not response.is_begun:
                with contextlib.suppress(OSError):
                    self._send_plain(504, head)
                    if not body.is_read():
                        self._wire.linger(UNREAD_TIME, SILENCE)
            raise
        except BaseException as error:
            self._fail(error, None if response.is_begun else head)
            raise
        else:
            is_at_end = body.is_read() or self._pass_over(body, keeps=response.keeps)
            self.close_connection = not (response.keeps and is_at_end)
        finally:
            if response.is_begun:
                client = None if forwarded is None else forwarded.client
                report_answer(head, response.status, response.sent, client=client)

    def _fail(self, error: BaseException, unanswered: Head | None) -> None:
        """Answer a request that has failed. ApplicationError: see there.

        error: also one that is no Exception and ends the worker, such as SystemExit. unanswered: the head of the
        request; None where an answer has begun.
        """
        is_clients = _is_of_the_connection(error)
        if unanswered is not None:
            is_late = is_clients and isinstance(error, TimeoutError)
            self._send_last(408 if is_late else 500, unanswered)
        if not is_clients and is_clients_doing(error, self.request):
            what = f"the application raised {type(error).__name__}: {error}"
            raise ApplicationError(what) from error

    def _run(self, environ: dict[str, Any], response: Response, body: Body) -> None:
        """Call the application, send its answer, and call ``close()`` of what it has returned.

        RefusedRequest: a read of the body has raised it. A framework catches it as it does any exception, and
        would answer 500, so the refusal goes before an answer that has not begun.
        """
        result: Iterable[bytes] = self.application(environ, response.start_response)
        try:
            if isinstance(body.failure, RefusedRequest) and not response.is_begun:
                raise body.failure
            response.send(result)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def _body_of(self, head: Head, limits: Limits, response: Response) -> Body:
        """Return the body of a request, and have the answer announce the end of the connection if the body calls for it.

        A client that waits for 100 Continue sends no body after it has read another answer. The server cannot know
        whether the next bytes are the body or another request, so the connection ends with that answer.
        The connection also ends if more of the body is unread than the server reads for the application, or if a
        read of the body has failed.
        """
        incoming = self._incoming
        ahead = incoming.ahead
        if not head.is_chunked and head.length <= len(ahead):
            incoming.ahead = ahead[head.length :]
            return NoBody(ahead[: head.length])
        awaited = head.expects_continue

        def before() -> None:
            nonlocal awaited
            if awaited:
                awaited = False
                if not response.is_begun:
                    self._wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")

        if head.is_chunked:
            chunked = ChunkedBody(incoming, limits.body, limits.head, before)
            response.must_end = lambda: awaited or chunked.failure is not None
            return chunked
        body = LengthBody(incoming, head.length, before)
        response.must_end = lambda: awaited or body.failure is not None or body.left() > MOST_UNREAD
        return body

    # --- ends

    def _pass_over(self, body: Body, *, keeps: bool) -> bool:
        """Read what the application has not read of a body; return whether the next request can follow.

        keeps: the answer has left the connection open. Otherwise, if a read of the body has failed, or if the body has
        no end within the bounds, the connection ends in such a way that the client sees the answer (``Wire.linger()``).
        """
        until = monotonic() + UNREAD_TIME
        if keeps and body.failure is None and self._read_rest(body, until):
            return True
        self._wire.linger(until - monotonic(), SILENCE)
        return False

    def _read_rest(self, body: Body, until: float) -> bool:
        """Read the rest of a body, within bounds; return whether it has ended. until: by ``monotonic()``."""
        left = MOST_UNREAD + PIECE  # the second is what the reader of the application may hold
        before = self.request.gettimeout()
        # ValueError: the application has closed the file, or has detached what reads the connection.
        with contextlib.suppress(OSError, RefusedRequest, ValueError):
            while left > 0 and (time := until - monotonic()) > 0:
                self.request.settimeout(time)
                piece = body.file.read1(left)
                if not piece:
                    break
                left -= len(piece)
            self.request.settimeout(before)
        return body.is_read()

    def _refuse(self, refusal: RefusedRequest, data: bytes = b"", head: Head | None = None) -> None:
        """Answer a request that the application does not get to see. data: its head, as far as that was read."""
        _lines.subject = str(current_worker() or "master")
        _lines.write(
            refusal.status,
            "refused a request",
            client=client_name(self.client_address) or "-",
            status=refusal.status,
            reason=str(refusal),
        )
        report_refusal()
        self._send_last(refusal.status, head, data.partition(b"\r\n")[0])

    def _send_last(self, status: int, head: Head | None = None, line: bytes = b"") -> None:
        """Answer without the application, as the last answer on this connection.

        The client may still be sending (``Wire.linger()``).
        """
        with contextlib.suppress(OSError, ValueError):
            self._send_plain(status, head, line)
            self._wire.linger(UNREAD_TIME, SILENCE)

    def _send_plain(self, status: int, head: Head | None, line: bytes = b"") -> None:
        """Send an answer of the server itself. line: the first of the request, where its head was not read."""
        answer, length = plain_answer(status, with_body=head is None or head.method != "HEAD")
        report_answer(head, str(status), length, line=line)
        self._wire.send(answer)


def _is_of_the_connection(error: BaseException) -> bool:
    """Return whether an exception of a request was raised where the connection of its client is read or written.

    An application has connections of its own, whose exceptions have the same types. The traceback
    shows where an exception comes from, and costs nothing while there is none.
    """
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") in _OF_THE_CONNECTION for frame, _ in frames)


_OF_THE_CONNECTION: Final = {Wire.__module__, Incoming.__module__}
"""The modules that read and write the connection of a client."""

_lines: Final = LimitedLines()
"""The lines about refused requests: a client can send thousands of them in a second."""


class _Serving:
    """What a server allows, and what the environments of its requests have in common."""

    def __init__(self, server: Any) -> None:
        self.limits = limits_of(server, run_of(server).given)
        address = server.server_address
        name, port = (str(part) for part in address[:2]) if isinstance(address, tuple) else ("", "")
        self.errors = ErrorStream()
        self.environ = base_environ(name or "localhost", port or "80", self.errors, FileWrapper)
        self.environ["wsgi.multithread"] = isinstance(server, ThreadingMixIn)
        self.environ["wsgi.multiprocess"] = bool(getattr(server, "workers", 0))


_ATTRIBUTE: Final = "_prefork_wsgi"


def _serving(server: Any) -> _Serving:
    """Return what the requests of a server object have in common, which is looked up once."""
    known: _Serving | None = vars(server).get(_ATTRIBUTE)
    if known is None:
        known = vars(server)[_ATTRIBUTE] = _Serving(server)
    return known


def handler_for(application: Any) -> type[WSGIHandler]:
    """Return a handler class that serves this application, a callable as PEP 3333 describes it."""
    return type("WSGIHandler", (WSGIHandler,), {"application": staticmethod(application)})
