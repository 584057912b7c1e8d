"""Between a connection or a datagram and a procedure: one call, and its reply (worker)."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from socketserver import BaseRequestHandler
from typing import Any, Final

import msgspec

from prefork.edge.client import ClientAddress, client_address
from prefork.parking.handler import ParkingMixIn
from prefork.rpc.dispatch import GarbageArguments, Task, refusal_of, reply_with, task_of
from prefork.rpc.message import AcceptStatus, AuthSys, Declined, NoCall, accepted
from prefork.rpc.program import Program, Programs, Refusal
from prefork.rpc.record import MOST_MARKED, RecordError, Records, marked
from prefork.rpc.replay import NoPlaceError, Replays
from prefork.workers.worker.clients import client_facts
from prefork.workers.worker.limited_lines import LimitedLines
from prefork.workers.worker.parking import refuse_state
from prefork.workers.worker.side import current_worker

MOST_DATAGRAM: Final = 65507
"""The most bytes of a datagram on IPv4."""

_lines: Final = LimitedLines()


class ProcedureError(Exception):
    """A procedure has raised an exception that its server would take for the doing of the client.

    A lost connection to a database is an example: the server logs the ConnectionError of a handler as
    "client went away". A procedure never sees the connection of its client, so that such an exception
    is always its own. The exception is the ``__cause__`` of this one.
    """


class RPCStreamHandler(ParkingMixIn, BaseRequestHandler):
    """Serves the calls of one connection, and parks the connection in between.

    The server has ``programs``, ``limit_message`` and ``message_timeout``.
    """

    _records: Records

    def setup(self) -> None:
        """Begin with what an earlier handler of this connection has read ahead."""
        self.state = self._luggage.state
        self._records = Records(self.request, self._luggage.read_ahead)

    def take_read_ahead(self) -> bytes:
        """Return what was read and belongs to the next call."""
        return self._records.ahead

    def handle(self) -> None:
        """Serve one call. A message that is not a call ends the connection, and so does an exception."""
        self.close_connection = True  # until the call is answered
        server: Any = self.server
        try:
            data = self._records.read(server.limit_message, server.message_timeout)
            if data is None:
                return
            task = _task_of(data, server.programs, self.client_address, self._send)
        except (RecordError, NoCall) as error:
            _note_refused(self.client_address, error)
            return
        if task is not None:
            self.state = execute(
                task, server, self.client_address, self._send, most=MOST_MARKED, state=self.state
            )
        self.close_connection = False

    def _send(self, reply: bytes) -> None:
        server: Any = self.server
        self._records.send(marked(reply), server.message_timeout)


class RPCDatagramHandler(BaseRequestHandler):
    """Serves the call in one datagram.

    The server has ``programs``, and ``replays``: the calls that were served before; None for no memory
    of them.
    """

    def handle(self) -> None:
        """Serve the call. A message that is not a call gets no reply."""
        server: Any = self.server
        data, sock = self.request
        send = _Datagram(sock, self.client_address).send
        try:
            task = _task_of(data, server.programs, self.client_address, send)
        except NoCall as error:
            _note_refused(self.client_address, error)
            return
        if task is None:
            return
        replays: Replays | None = server.replays
        if replays is None or task.procedure.idempotent:
            execute(task, server, self.client_address, send, most=MOST_DATAGRAM)
        else:
            self._execute_once(task, replays, send)

    def _execute_once(self, task: Task, replays: Replays, send: Callable[[bytes], None]) -> None:
        data, address = self.request[0], self.client_address
        try:
            claim = replays.claim(data, address)
        except NoPlaceError as error:
            _note("dropped a call", address, error)
            return
        if claim is None:
            return  # the same call is being executed, which will be answered

        def keep_and_send(reply: bytes) -> None:
            # The place is free before the client has the reply: what the client sends next is answered.
            claim.keep(reply)
            claim.release()
            send(reply)

        try:
            if claim.reply is None:
                execute(task, self.server, address, keep_and_send, most=MOST_DATAGRAM)
            else:
                claim.release()
                send(claim.reply or accepted(task.call.xid, AcceptStatus.SYSTEM_ERR))
        finally:
            claim.release()


class _Datagram(msgspec.Struct, frozen=True):
    """The way back to the client of one datagram."""

    sock: Any
    address: Any

    def send(self, reply: bytes) -> None:
        """Send a reply of at most MOST_DATAGRAM bytes. A client that cannot be reached costs one line of the log."""
        try:
            self.sock.sendto(reply, self.address)
        except OSError as error:  # no way back: a sender may be forged, and have port 0
            _note_refused(self.address, error)


def _task_of(
    data: bytes, programs: Programs, client: Any, send: Callable[[bytes], None]
) -> Task | None:
    """Return what a message asks for; None for a call that was answered by a status. NoCall: it is not a call."""
    try:
        return task_of(data, programs)
    except GarbageArguments as error:
        _note_refused(client, error)
        send(error.reply)
    except Declined as error:
        send(error.reply)
    return None


def execute(
    task: Task,
    server: Any,
    client: Any,
    send: Callable[[bytes], None],
    *,
    most: int,
    state: bytes | None = None,
) -> bytes:
    """Execute a call and send the reply. Return the state of the connection afterwards, b"" without a connection.

    most: bytes of a reply. state: what an earlier call has kept of the connection; None where there is no
    connection that keeps anything.

    What the procedure raises is answered by SYSTEM_ERR and raised again, so that the server's
    ``handle_error()`` logs it. A result that has no room in a reply, and a state that cannot be kept, are
    errors of the procedure, too. Both are found before anything is sent. ProcedureError: see there.
    """
    try:
        program = task.program()
        program.server = server
        program.call = task.call
        program.state = state or b""
        program.credentials = credentials = task.call.credentials
        program.client_address = client if credentials is None else _known(client, credentials)
        reply = _reply_of(task, program, most)
        kept = b"" if state is None else _checked(program.state)
    except BaseException as error:
        with contextlib.suppress(OSError):
            send(accepted(task.call.xid, AcceptStatus.SYSTEM_ERR))
        if isinstance(error, (ConnectionError, TimeoutError, ssl.SSLError)):
            what = f"{task.name} raised {type(error).__name__}: {error}"
            raise ProcedureError(what) from error
        raise
    send(reply)
    return kept


def _reply_of(task: Task, program: Program, most: int) -> bytes:
    """Call a procedure and return the reply. Raises what the procedure raises; ValueError: the reply is too long."""
    try:
        reply = reply_with(task, task.procedure.method(program, *task.arguments))
    except Refusal as refusal:
        return refusal_of(task, refusal)
    if len(reply) > most:
        raise ValueError(
            f"the reply of {task.name} has {len(reply)} bytes, and at most {most} can be sent"
        )
    return reply


def _checked(state: bytes) -> bytes:
    """Return a state that can be kept. TypeError, ValueError: it cannot."""
    refuse_state(state)
    return state


def _known(client: Any, credentials: AuthSys) -> Any:
    """Return the address of a client with what AUTH_SYS says; an identity that the edge has found stays.

    The word ``auth_sys`` stands before the user, because the client only claims to be that user.
    """
    identity = f"auth_sys:uid={credentials.uid}"
    if not isinstance(client, ClientAddress):
        return client_address(client, client, identity=identity)
    if client.identity is not None:
        return client
    plain: Any = client
    base = next(kind for kind in (tuple, str, bytes) if isinstance(plain, kind))
    return client_address(
        base(plain), client.peer, identity=identity, tls=client.tls, proxy=client.proxy
    )


def _note_refused(client: Any, error: Exception) -> None:
    _note("refused a call", client, error)


def _note(what: str, client: Any, error: Exception) -> None:
    """Log that a call was not executed. Each kind of error has one line in a second at most."""
    _lines.subject = str(current_worker() or "master")
    _lines.write(type(error).__name__, what, **client_facts(client), error=error)
