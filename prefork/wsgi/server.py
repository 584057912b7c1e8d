"""Servers of one WSGI application."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from prefork.servers import PreForkingTCPServer, PreForkingUnixStreamServer
from prefork.wsgi.books import report_answer
from prefork.wsgi.handler import handler_for
from prefork.wsgi.limits import limits_of
from prefork.wsgi.response import plain_answer


class _OfApplication(PreForkingTCPServer if TYPE_CHECKING else object):  # type: ignore[misc]
    """What servers of WSGI applications have in common, in front of a server class."""

    park_new: bool | str = True
    limit_head: int | str = 32 * 1024
    limit_fields: int = 100
    limit_body: int | str | None = None
    forwarded_from: Sequence[str] | str | None = None
    forwarded_fields: str = "x-forwarded"

    def __init__(
        self, server_address: Any, application: Any, bind_and_activate: bool = True
    ) -> None:
        limits_of(self, None)  # refuses what cannot be used, before anything is bound
        super().__init__(server_address, handler_for(application), bind_and_activate)

    def shed_request(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the hook's signature
        """Answer 503 to a request that has waited for longer than ``max_queue_wait`` (worker)."""
        answer, length = plain_answer(503, Retry_After="1")
        report_answer(None, "503", length)
        with contextlib.suppress(OSError):
            # Without this a socket that has a client_timeout would wait for the client.
            request.settimeout(0)
            request.send(answer)
            # Unread bytes would have the kernel reset the connection, and the answer with it.
            request.shutdown(socket.SHUT_WR)
            request.recv(1 << 16)


class WSGIServer(_OfApplication, PreForkingTCPServer):
    """A pre-forked server of a WSGI application on IPv4 or IPv6: ``WSGIServer(address, application)``.

    All settings of a pool are class attributes, as with the other servers. There are these, too. A status in
    brackets is the answer to a request that goes over the limit.

    A size may be text, such as ``"10M"``.

    limit_head: most bytes of the head of a request (431). limit_fields: most fields in it (431).
    limit_body: most bytes of a body, None for any number (413). ``edge_timeout`` is the time for a
    head (408), and ``client_timeout`` the longest pause within a body.

    forwarded_from: networks of proxies, as text; ``unix`` for all peers of Unix sockets. What these peers say in the
    head about the client of a request is believed. forwarded_fields: ``x-forwarded`` for X-Forwarded-For and
    X-Forwarded-Proto, ``forwarded`` for Forwarded. The constructor raises SettingsError for a value that cannot be
    used.

    A request that is asked to end (``soft_timeout``) is answered by 504, one that has waited for longer
    than ``max_queue_wait`` by 503.

    ``park_new`` is on: a client that connects and says nothing holds no worker. ``defer_accept`` is one
    second, so that the kernel reports a client that speaks at once together with its request.
    """

    defer_accept: float | str | None = 1.0


class UnixWSGIServer(_OfApplication, PreForkingUnixStreamServer):
    """A pre-forked server of a WSGI application on a Unix socket; see ``WSGIServer``."""


CLASSES: Final = {"tcp": WSGIServer, "unix": UnixWSGIServer}
"""The servers of WSGI applications, by the scheme of the address."""
