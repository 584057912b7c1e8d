"""Datagram handlers that send no reply when the handler wrote nothing (worker).

The standard ``DatagramRequestHandler`` then sends an empty datagram. Two such servers that face each other
would answer each other's empty datagrams for ever. The ready-made servers run their handlers this way.
"""

from __future__ import annotations

import socketserver
from typing import Any

_quiet_classes: dict[Any, Any] = {}
"""For each handler class the class that is used: the class itself, or a quiet version of it."""


def finish_request(self: socketserver.BaseServer, request: Any, client_address: Any) -> None:
    """Run the handler."""
    quiet_class(self.RequestHandlerClass)(request, client_address, self)


def quiet_class(handler: Any) -> Any:
    """Return a class like this one whose ``finish()`` sends nothing if nothing was written."""
    if not isinstance(handler, type):
        return handler  # what makes handlers otherwise need not even be hashable
    return _quiet_classes.get(handler) or _make_quiet(handler)


def _make_quiet(handler: Any) -> Any:
    quiet = handler
    if getattr(handler, "finish", None) is socketserver.DatagramRequestHandler.finish:
        names = {
            "finish": _finish_quietly,
            "__module__": handler.__module__,
            "__qualname__": handler.__qualname__,
        }
        quiet = type(handler.__name__, (handler,), names)
    _quiet_classes[handler] = quiet
    return quiet


def _finish_quietly(self: Any) -> None:
    if self.wfile.tell():
        socketserver.DatagramRequestHandler.finish(self)
