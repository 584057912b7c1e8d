"""WSGI applications, served by a pool: ``WSGIServer(address, application)``.

Needs the package httptools, which reads the heads of requests: ``pip install 'prefork[http]'``.
"""

from __future__ import annotations

from prefork.wsgi.handler import ApplicationError, WSGIHandler, handler_for
from prefork.wsgi.server import UnixWSGIServer, WSGIServer

__all__ = ["ApplicationError", "UnixWSGIServer", "WSGIHandler", "WSGIServer", "handler_for"]
