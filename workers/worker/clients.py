"""Clients in the log: their names, and one line where they went away or kept a handler waiting (worker).

A stranger who can reach the port can make a thousand of them a second. So a worker writes at most one
line a second, which counts the others. At level DEBUG each of them is logged with its traceback.
"""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import sys
import traceback
from collections.abc import Callable
from socketserver import BaseServer
from time import monotonic
from typing import Any, Final

from prefork.workers import log
from prefork.workers.hosts import with_port
from prefork.workers.slot_writer import Outcome
from prefork.workers.text import text_of
from prefork.workers.worker.standard import is_standard_step

INTERVAL = 1.0
"""The least number of seconds between two lines of one worker."""

LONGEST_CLIENT = 200
"""Characters of a client's name that are logged. A client can choose its name, but not the length
of a line.
"""

_NOT_THE_PLACE = {os.path.dirname(socketserver.__file__), os.path.dirname(__file__)}
"""Folders whose files do not show where a handler was: every read ends in socket.py."""


def is_clients_doing(error: BaseException, request: Any = None) -> bool:
    """Return whether the exception is one that a client causes by leaving or by silence.

    request: the socket that the handler had, where that is known. A peer that the handler itself
    connected to can cause the same ones; the line of the log names the place. A refused connection is
    never the doing of a client that was connected.
    """
    if _is_end_of_tls(error, request):
        return True
    gone = isinstance(error, (TimeoutError, ConnectionError))
    return gone and not isinstance(error, ConnectionRefusedError)


def _is_end_of_tls(error: BaseException, request: Any) -> bool:
    """Return whether an encrypted connection has ended in a way that only TLS has words for.

    Its client has closed it while the handler was writing, has sent an alert, or has sent something
    that is not TLS. A client has no part in the failed check of a certificate: there the handler has
    connected to another server.
    """
    ssl = sys.modules.get("ssl")
    if ssl is None or not isinstance(request, ssl.SSLSocket):
        return False
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError)


def is_client_timeout(request: Any, error: BaseException) -> bool:
    """Return whether a request ended because its client kept the handler waiting for too long.

    request: what ``get_request()`` returned. The connection has a timeout then, from ``client_timeout`` or
    from the handler class (``timeout``). A handler that waits for another server, and lets the TimeoutError of
    that connection pass, looks the same.
    """
    if not isinstance(error, TimeoutError) or not isinstance(request, socket.socket):
        return False
    return bool(request.gettimeout())


def outcome_of(request: Any, error: BaseException) -> Outcome:
    """Return how a request counts whose handler raised this."""
    return Outcome.CLIENT_TIMEOUT if is_client_timeout(request, error) else Outcome.ERROR


class LostClients:
    """The lines about lost clients of one process; each worker has its own."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._quiet_until = 0.0
        self._others = 0

    def note(self, subject: str, error: BaseException, address: Any) -> None:
        """Log that a request ended this way; at level DEBUG also the traceback.

        address: of the client. The ``others`` of a line are the lost clients since
        the previous line that had no line.
        """
        what = "client timed out" if isinstance(error, TimeoutError) else "client went away"
        if log.is_wanted(log.logger, logging.DEBUG):
            log.failure(logging.DEBUG, subject, what, error, **client_facts(address))
        now = self._clock()
        if now < self._quiet_until:
            self._others += 1
            return
        others, self._others = self._others, 0
        self._quiet_until = now + INTERVAL
        place = place_of(error)
        log.event(
            logging.WARNING,
            subject,
            what,
            **client_facts(address),
            error=error,
            place=place,
            others=others,
        )


lost_clients: Final = LostClients()
"""The lines of this process."""


def log_timeouts(server: BaseServer, subject: str) -> None:
    """Have each client that times out cost one line of the log, and no traceback on standard error.

    The timeout is the pool's own (``client_timeout``), and so is the line. Called in a worker, for its
    own copy of the server object. A class that has a ``handle_error()`` of its own keeps it.
    """
    inherited = server.handle_error
    if not is_standard_step(server, "handle_error", BaseServer):
        return

    def handle_error(request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and is_client_timeout(request, error):
            lost_clients.note(subject, error, client_address)
        else:
            inherited(request, client_address)

    server.handle_error = handle_error  # type: ignore[method-assign]


def place_of(error: BaseException) -> str:
    """Return ``file:line`` of the innermost frame that is neither in the standard library's modules nor in ours."""
    frames = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    tellings = [place for place in frames if os.path.dirname(place[0]) not in _NOT_THE_PLACE]
    file, line = (tellings or frames or [("unknown", 0)])[-1]
    return f"{file}:{line}"


def client_facts(address: Any) -> dict[str, Any]:
    """Return what a log line says of a client: its name, and behind an edge also peer and identity.

    The peer is left out where it is the client. None stands for a client without a name. An edge
    gives handlers a ``ClientAddress``, which has the attributes ``peer`` and ``identity``; a plain
    address has neither.
    """
    client = client_name(address)
    facts: dict[str, Any] = {"client": client or "-"}
    peer = client_name(getattr(address, "peer", None))
    if peer is not None and peer != client:
        facts["peer"] = peer
    identity = getattr(address, "identity", None)
    if identity is not None:
        facts["identity"] = text_of(identity)[:LONGEST_CLIENT]
    return facts


def client_name(address: Any) -> str | None:
    """Return a client's address as one bounded word or name, None where the client has no address.

    Examples: ``127.0.0.1:4711``, ``[::1]:4711``, a path, ``@abstract``. The bytes of a Unix client's
    name are chosen by that client, and an overridden ``get_request()`` may return anything.
    """
    try:
        return _name(address)[:LONGEST_CLIENT] or None
    except Exception:  # noqa: BLE001 - from a __str__ of the program
        return f"<{type(address).__name__}>"


def _name(address: Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2 and isinstance(address[0], str):
        return with_port(address[0], address[1])
    if isinstance(address, bytes):
        address = os.fsdecode(address)
    name = "" if address is None else str(address)
    return "@" + name[1:] if name.startswith("\0") else name
