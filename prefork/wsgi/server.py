"""Servers of one WSGI application."""

from __future__ import annotations

from typing import Any

from prefork.servers import PreForkingTCPServer, PreForkingUnixStreamServer
from prefork.wsgi.handler import LIMIT_FIELDS, LIMIT_HEAD, handler_for


class WSGIServer(PreForkingTCPServer):
    """A pre-forked server of a WSGI application on IPv4 or IPv6: ``WSGIServer(address, application)``.

    All settings of a pool are class attributes, as with the other servers. In addition:

    limit_head: most bytes of the head of a request (431). limit_fields: most fields in it (431).
    limit_body: most bytes of a body, None for any number (413). ``edge_timeout`` is the time for a
    head (408), and ``client_timeout`` the longest pause within a body.

    ``park_new`` is on: a client that connects and says nothing holds no worker.
    """

    park_new = True
    limit_head: int = LIMIT_HEAD
    limit_fields: int = LIMIT_FIELDS
    limit_body: int | None = None

    def __init__(
        self, server_address: Any, application: Any, bind_and_activate: bool = True
    ) -> None:
        super().__init__(server_address, handler_for(application), bind_and_activate)


class UnixWSGIServer(PreForkingUnixStreamServer):
    """A pre-forked server of a WSGI application on a Unix socket; see ``WSGIServer``."""

    park_new = True
    limit_head: int = LIMIT_HEAD
    limit_fields: int = LIMIT_FIELDS
    limit_body: int | None = None

    def __init__(
        self, server_address: Any, application: Any, bind_and_activate: bool = True
    ) -> None:
        super().__init__(server_address, handler_for(application), bind_and_activate)
