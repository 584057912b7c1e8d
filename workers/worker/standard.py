"""Whether a method is the standard library's own, so that a worker may leave out a call of it (both)."""

from __future__ import annotations

import _socket
import socket
import socketserver
from types import FunctionType, MethodType
from typing import Any

# A method is compared with how the standard library defined it, and not with what its class has now. A
# tracer or a security patch may have replaced the method on socketserver's own class, perhaps before
# prefork was imported. A Python function keeps the namespace of the module that defined it, and its code
# keeps the name under which it was defined. functools.wraps() copies neither of them, and the
# wrappers of wrapt are no functions.
#
# One replacement is not noticed: to give the standard function itself another __code__ whose qualified
# name is the same.


def is_standard_step(server: Any, name: str, owner: type) -> bool:
    """Return whether a server's method is the one that socketserver's class ``owner`` was defined with.

    It is not, if the server's class or object overrides it, or if it was replaced on ``owner``.
    """
    method = getattr(server, name, None)
    return type(method) is MethodType and is_standard(method.__func__, owner, name)


def is_standard(function: Any, owner: type, name: str) -> bool:
    """Return whether a function is the method ``name`` that socketserver's class ``owner`` was defined with."""
    return _is_of(function, vars(socketserver), owner, name)


def as_defined(owner: type, name: str) -> Any:
    """Return the method ``name`` of socketserver's class ``owner``, or None if it has been replaced."""
    function = getattr(owner, name)
    return function if is_standard(function, owner, name) else None


def accepts_plainly(sock: Any) -> bool:
    """Return whether ``accept()`` of a socket is that of ``socket.socket``, and makes sockets of that class."""
    is_plain = type(sock) is socket.socket
    return is_plain and _is_of(socket.socket.accept, vars(socket), socket.socket, "accept")


def receives_plainly(sock: Any) -> bool:
    """Return whether ``recvfrom()`` of a socket is that of the system."""
    return getattr(type(sock), "recvfrom", None) is _socket.socket.recvfrom


def _is_of(function: Any, namespace: dict[str, Any], owner: type, name: str) -> bool:
    if type(function) is not FunctionType or function.__globals__ is not namespace:
        return False
    return function.__code__.co_qualname == f"{owner.__name__}.{name}"
