"""How a ready-made datagram server runs a handler: without the empty reply of one that wrote nothing.

Two servers that face each other would answer each other's empty datagrams for ever.
"""

from __future__ import annotations

import socketserver
from typing import Any

_quiet_classes: dict[Any, Any] = {}
"""For each handler class the class that is used: itself, or its quiet version."""


def finish_request(self: socketserver.BaseServer, request: Any, client_address: Any) -> None:
    """Run the handler (worker)."""
    quiet_class(self.RequestHandlerClass)(request, client_address, self)


def quiet_class(handler: Any) -> Any:
    """Return the handler class with a ``finish()`` that sends nothing when nothing was written."""
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
