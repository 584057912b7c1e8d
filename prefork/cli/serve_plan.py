"""From what TARGET names to the servers that are to be served: everything is checked before anything is bound.

TARGET names

* a handler class: every address gets the ready-made server of its scheme;
* a server class: made once per address, as ``Class(address)``, or as
  ``Class(address, Class.RequestHandlerClass)`` if it has that class attribute. Without
  ``PreForkingMixIn`` it gets the mix-in put in front;
* a server instance that has the mix-in: it has its address, so none can be given;
* with ``--factory`` a callable without arguments that returns one of these, or several instances.

``plan`` checks everything that can be checked, ``ServePlan.build`` binds.
"""

from __future__ import annotations

import contextlib
import inspect
import socket
from collections.abc import Callable, Iterator, Sequence
from socketserver import (
    BaseRequestHandler,
    BaseServer,
    DatagramRequestHandler,
    StreamRequestHandler,
    TCPServer,
)
from typing import Any, Final

import msgspec

from prefork.cli.application_errors import application_errors
from prefork.host.addresses import Address
from prefork.mixin import PreForkingMixIn
from prefork.servers import server_for
from prefork.workers.errors import TargetError
from prefork.workers.settings import ROWS

WHAT_CAN_BE_SERVED: Final = (
    "a handler class (of socketserver.BaseRequestHandler), a server class (of "
    "socketserver.BaseServer), a server instance with PreForkingMixIn, or with --factory a "
    "callable that returns one"
)

_DATAGRAM_SCHEMES = ("udp", "unixgram")


class ServePlan(msgspec.Struct, frozen=True):
    """What will be served. text: one line for people. build: makes the servers, which binds them.

    build raises BindError, and BootError for whatever else the application raises; either way
    what was bound before is closed again.
    """

    text: str
    build: Callable[[], list[BaseServer]]


class Requested(msgspec.Struct, frozen=True):
    """What the settings ask of the servers.

    addresses: where to listen. binds_from, backlog_from: who asked for them, None for nobody.
    """

    addresses: Sequence[Address]
    binds_from: str | None = None
    backlog: int | None = None
    backlog_from: str | None = None


def plan(target: str, found: object, requested: Requested, *, factory: bool = False) -> ServePlan:
    """Decide how to serve what ``load`` found; raises TargetError if that cannot be."""
    if factory:
        return _plan_factory(target, found, requested)
    if isinstance(found, BaseServer):
        return _plan_instances(target, [found], requested)
    if isinstance(found, type) and issubclass(found, BaseRequestHandler):
        return _plan_handler(target, found, requested)
    if isinstance(found, type) and issubclass(found, BaseServer):
        return _plan_server_class(target, found, requested)
    raise TargetError(target, f"{_kind_of(found)} cannot be served, only {WHAT_CAN_BE_SERVED}")


def _kind_of(found: object) -> str:
    if isinstance(found, type):
        return f"class {found.__name__}"
    if callable(found):
        return f"the callable {getattr(found, '__name__', type(found).__name__)}"
    return f"an instance of {type(found).__name__}"


def _plan_handler(
    target: str, handler: type[BaseRequestHandler], requested: Requested
) -> ServePlan:
    for address in requested.addresses:
        datagrams = address.scheme in _DATAGRAM_SCHEMES
        wrong = StreamRequestHandler if datagrams else DatagramRequestHandler
        if not address.is_bound and issubclass(handler, wrong):
            reason = f"{handler.__name__} is a {wrong.__name__} and cannot serve {address}"
            raise TargetError(target, reason)

    def make(address: Address) -> BaseServer:
        return server_for(address, handler, backlog=requested.backlog)

    return _plan_per_address(f"handler class {handler.__name__}", make, requested)


def _plan_server_class(target: str, cls: type[BaseServer], requested: Requested) -> ServePlan:
    handler: Any = getattr(cls, "RequestHandlerClass", None)
    _check_call(target, cls, handler)
    for address in requested.addresses:
        _check_family(target, cls, address)

    def make(address: Address) -> BaseServer:
        made: Any = _prepared(cls, address, requested.backlog)
        arguments = (address.sockaddr,) if handler is None else (address.sockaddr, handler)
        server: BaseServer = made(*arguments)
        return server

    return _plan_per_address(f"server class {cls.__name__}", make, requested)


def _check_call(target: str, cls: type[BaseServer], handler: object) -> None:
    if handler is not None and not callable(handler):
        raise TargetError(target, f"{cls.__name__}.RequestHandlerClass is {_kind_of(handler)}")
    arguments = ("address",) if handler is None else ("address", handler)
    try:
        inspect.signature(cls).bind(*arguments)
    except TypeError as error:
        raise TargetError(
            target,
            f"{cls.__name__} cannot be made from {'an address' if handler is None else 'an address and its handler'}"
            f" ({error}); set the class attribute RequestHandlerClass, or use --factory",
        ) from None
    except ValueError:  # a class of C, which tells nothing: building it will show
        return


def _check_family(target: str, cls: type[BaseServer], address: Address) -> None:
    """Refuse an address of another kind than the sockets of the class."""
    if address.is_bound:
        raise TargetError(
            target,
            f"{cls.__name__} binds its own socket; {address} needs a handler class, or --factory",
        )
    if not issubclass(cls, TCPServer):  # UDPServer and the Unix ones are, too; others know best
        return
    unix = cls.address_family == socket.AF_UNIX
    datagrams = cls.socket_type == socket.SOCK_DGRAM
    if unix != address.scheme.startswith("unix") or datagrams != (
        address.scheme in _DATAGRAM_SCHEMES
    ):
        kind = ("unixgram" if datagrams else "unix") if unix else ("udp" if datagrams else "tcp")
        raise TargetError(target, f"{cls.__name__} serves {kind} addresses, not {address}")


def _prepared(cls: type[BaseServer], address: Address, backlog: int | None) -> type[BaseServer]:
    """Give the class, or one derived from it where mix-in, backlog or family have to change."""
    changes: dict[str, object] = {}
    if backlog is not None:
        changes["request_queue_size"] = backlog
    if address.family == socket.AF_INET6 and getattr(cls, "address_family", None) == socket.AF_INET:
        changes["address_family"] = socket.AF_INET6
    mixed = issubclass(cls, PreForkingMixIn)
    if mixed and not changes:
        return cls
    if not mixed:
        # In front, the mix-in's defaults would hide the settings that the class was given.
        attributes = [row.attribute for row in ROWS.values() if row.attribute is not None]
        changes |= {name: getattr(cls, name) for name in attributes if hasattr(cls, name)}
    # It passes for the class itself in logs, settings and tracebacks.
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    bases = (cls,) if mixed else (PreForkingMixIn, cls)
    return type(cls.__name__, bases, names | changes)


def _plan_per_address(
    what: str, make: Callable[[Address], BaseServer], requested: Requested
) -> ServePlan:
    def build() -> list[BaseServer]:
        with _closing_on_failure() as servers:
            for address in requested.addresses:
                with application_errors(f"{what} cannot be made", address):
                    servers.append(make(address))
        return servers

    return ServePlan(f"{what} on {' '.join(map(str, requested.addresses))}", build)


def _plan_instances(target: str, servers: list[BaseServer], requested: Requested) -> ServePlan:
    for server in servers:
        if not isinstance(server, PreForkingMixIn):
            name = type(server).__name__
            raise TargetError(
                target,
                f"an instance of {name} without PreForkingMixIn cannot be pre-forked any more; "
                f"name its class, or derive from (PreForkingMixIn, {name})",
            )
    for flag, origin in (("bind", requested.binds_from), ("backlog", requested.backlog_from)):
        if origin is not None:
            reason = f"a server instance listens already; {flag} (from {origin}) comes too late"
            raise TargetError(target, reason)
    names = ", ".join(type(server).__name__ for server in servers)
    return ServePlan(f"server {names}", lambda: servers)


def _plan_factory(target: str, found: object, requested: Requested) -> ServePlan:
    if not callable(found) or isinstance(found, type):
        reason = f"--factory needs a function that returns servers; this is {_kind_of(found)}"
        raise TargetError(target, reason)
    name = getattr(found, "__name__", type(found).__name__)
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise TargetError(
            target, f"the factory {name} is called without arguments: {error}"
        ) from None
    except ValueError:  # a callable of C, which tells nothing
        pass

    def build() -> list[BaseServer]:
        with application_errors(f"factory {name}() failed"):
            made = found()
        several = list(made) if isinstance(made, (list, tuple)) else [made]
        if several and all(isinstance(server, BaseServer) for server in several):
            with _closing_on_failure() as servers:
                servers.extend(several)
                return _plan_instances(target, servers, requested).build()
        if len(several) == 1 and isinstance(several[0], type):
            return plan(target, several[0], requested).build()
        reason = f"the factory {name}() returned {_kind_of(made)}, not {WHAT_CAN_BE_SERVED}"
        raise TargetError(target, reason)

    return ServePlan(f"what the factory {name}() returns", build)


@contextlib.contextmanager
def _closing_on_failure() -> Iterator[list[BaseServer]]:
    """Collect servers, and close what was collected if the body raises."""
    servers: list[BaseServer] = []
    try:
        yield servers
    except BaseException:
        for server in servers:
            with contextlib.suppress(Exception):  # the first failure is the one to tell
                server.server_close()
        raise
