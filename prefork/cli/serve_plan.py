"""Decide how the object that TARGET names is served.

Everything is checked before anything is bound.

TARGET names one of these:

* A handler class. Each address gets the ready-made server of its scheme.
* A server class. It is called once for each address, as ``Class(address)``, or as
  ``Class(address, Class.RequestHandlerClass)`` if it has that class attribute. ``PreForkingMixIn`` is put in
  front of a class that does not have it.
* A server instance that has the mix-in. It has an address already, so none can be given.
* A WSGI application, which is any other callable that takes two arguments. Each address gets a server
  of HTTP.
* With ``--factory``, a callable without arguments that returns one of these, or several instances.

``plan()`` checks everything that can be checked. ``ServePlan.build()`` binds.
"""

from __future__ import annotations

import contextlib
import inspect
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from socketserver import (
    BaseRequestHandler,
    BaseServer,
    DatagramRequestHandler,
    StreamRequestHandler,
    TCPServer,
)
from types import BuiltinFunctionType
from typing import Any, Final

import msgspec

from prefork.cli.application_errors import application_errors
from prefork.edge.setup import EdgeSettings, configure, refuse_wrong_context
from prefork.host.addresses import Address
from prefork.mixin import PreForkingMixIn
from prefork.servers import server_for
from prefork.usable import ServerKind, kind_of, kind_of_class
from prefork.workers.errors import TargetError
from prefork.workers.settings import ROWS
from prefork.workers.worker.accounting import reports_answers

_SERVABLE: Final = (
    "a handler class (of socketserver.BaseRequestHandler), a server class (of "
    "socketserver.BaseServer), a server instance with PreForkingMixIn, a WSGI application"
)

WHAT_CAN_BE_SERVED: Final = f"{_SERVABLE}, or with --factory a callable that returns one"

_DATAGRAM_SCHEMES = ("udp", "unixgram")


class ServePlan(msgspec.Struct, frozen=True):
    """What will be served.

    text: one line for people. build: makes and binds the servers. It raises BindError for an
    address that cannot be bound, and BootError for everything else that the application raises.
    Servers that were bound before the error are closed again. addresses: what ``build`` binds. kinds: of the
    servers. Both are empty where only the application knows.
    """

    text: str
    build: Callable[[], list[BaseServer]]
    addresses: Sequence[Address] = ()
    kinds: Sequence[ServerKind] = ()


class Requested(msgspec.Struct, frozen=True):
    """What the settings request of the servers.

    addresses: where to listen. backlog: None for the default of each class. binds_from,
    backlog_from: the origins of the two settings, None where the default is used. edges: who may
    connect, for each of the addresses; empty for what the servers' own attributes say. limits: what
    flags, environment and file say of the attributes that servers of WSGI applications have.
    """

    addresses: Sequence[Address]
    binds_from: str | None = None
    backlog: int | None = None
    backlog_from: str | None = None
    edges: Sequence[EdgeSettings] = ()
    limits: Mapping[str, object] = {}


def plan(target: str, found: object, requested: Requested, *, factory: bool = False) -> ServePlan:
    """Return how the object that ``load()`` has found is served.

    TargetError: it cannot be served.
    """
    if factory:
        return _plan_factory(target, found, requested)
    if isinstance(found, BaseServer):
        return _plan_instances(target, [found], requested)
    if isinstance(found, type) and issubclass(found, BaseRequestHandler):
        return _plan_handler(target, found, requested)
    if isinstance(found, type) and issubclass(found, BaseServer):
        return _plan_server_class(target, found, requested)
    if is_application(found):
        return _plan_application(target, found, requested)
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

    kind = ServerKind(reports=reports_answers(handler))
    return _plan_per_address(f"handler class {handler.__name__}", make, requested, kind)


def _plan_application(target: str, application: object, requested: Requested) -> ServePlan:
    """Return how a WSGI application is served. MissingPackageError: what reads the requests is not installed."""
    from prefork.wsgi.server import CLASSES  # noqa: PLC0415 - loads httptools

    for address in requested.addresses:
        if address.scheme in _DATAGRAM_SCHEMES:
            raise TargetError(target, f"a WSGI application cannot serve datagrams, as on {address}")

    def make(address: Address) -> BaseServer:
        return server_for(address, application, backlog=requested.backlog, classes=CLASSES)

    kind = ServerKind(reports=True)
    return _plan_per_address(f"WSGI application {target}", make, requested, kind)


def is_application(found: object) -> bool:
    """Return whether an object looks like a WSGI application: it can be called with two arguments."""
    not_one = (BaseServer, BaseRequestHandler, BuiltinFunctionType)
    if not callable(found) or isinstance(found, not_one):
        return False
    if isinstance(found, type) and issubclass(found, (BaseServer, BaseRequestHandler)):
        return False
    if isinstance(found, type) and not hasattr(found, "__iter__"):
        return False  # an instance of it would be no body of an answer
    try:
        inspect.signature(found).bind("environ", "start_response")
    except (TypeError, ValueError):  # ValueError: an object written in C has no signature
        return False
    return True


def _plan_server_class(target: str, cls: type[BaseServer], requested: Requested) -> ServePlan:
    handler: Any = getattr(cls, "RequestHandlerClass", None)
    _check_call(target, cls, handler)
    for address in requested.addresses:
        _check_family(target, cls, address)
    for edge in requested.edges:
        refuse_wrong_context(cls, edge)

    def make(address: Address) -> BaseServer:
        made: Any = _prepared(cls, address, requested.backlog)
        arguments = (address.sockaddr,) if handler is None else (address.sockaddr, handler)
        server: BaseServer = made(*arguments)
        return server

    kind = kind_of_class(cls)
    return _plan_per_address(f"server class {cls.__name__}", make, requested, kind)


def _check_call(target: str, cls: type[BaseServer], handler: object) -> None:
    if handler is not None and not callable(handler):
        reason = f"{cls.__name__}.RequestHandlerClass is {_kind_of(handler)}, not a handler class"
        raise TargetError(target, reason)
    arguments = ("address",) if handler is None else ("address", handler)
    try:
        inspect.signature(cls).bind(*arguments)
    except TypeError as error:
        raise TargetError(
            target,
            f"{cls.__name__} cannot be made from {'an address' if handler is None else 'an address and its handler'}"
            f" ({error}); set the class attribute RequestHandlerClass, or use --factory",
        ) from None
    except (
        ValueError
    ):  # a class written in C has no signature: build() will show whether it can be called
        return


def _check_family(target: str, cls: type[BaseServer], address: Address) -> None:
    """Raise TargetError for an address of another kind than the sockets of the class."""
    if address.is_bound:
        raise TargetError(
            target,
            f"{cls.__name__} binds a socket of its own; serve {address} with a handler class or --factory",
        )
    # UDPServer and the Unix servers are subclasses of TCPServer, too. What sockets other classes
    # make is unknown.
    if not issubclass(cls, TCPServer):
        return
    unix = cls.address_family == socket.AF_UNIX
    datagrams = cls.socket_type == socket.SOCK_DGRAM
    if unix != address.scheme.startswith("unix") or datagrams != (
        address.scheme in _DATAGRAM_SCHEMES
    ):
        kind = ("unixgram" if datagrams else "unix") if unix else ("udp" if datagrams else "tcp")
        raise TargetError(target, f"{cls.__name__} serves {kind} addresses, not {address}")


def _prepared(cls: type[BaseServer], address: Address, backlog: int | None) -> type[BaseServer]:
    """Return the class, or a subclass of it with the mix-in, the backlog and the family that are needed.

    A subclass with the mix-in in front would hide the settings that the class has as attributes
    behind the mix-in's defaults. So these attributes are copied into the subclass. The subclass has
    the name and the module of the original class, and so looks like it in logs and tracebacks.
    """
    changes: dict[str, object] = {}
    if backlog is not None:
        changes["request_queue_size"] = backlog
    if address.family == socket.AF_INET6 and getattr(cls, "address_family", None) == socket.AF_INET:
        changes["address_family"] = socket.AF_INET6
    mixed = issubclass(cls, PreForkingMixIn)
    if mixed and not changes:
        return cls
    if not mixed:
        attributes = [row.attribute for row in ROWS.values() if row.attribute is not None]
        changes |= {name: getattr(cls, name) for name in attributes if hasattr(cls, name)}
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    bases = (cls,) if mixed else (PreForkingMixIn, cls)
    return type(cls.__name__, bases, names | changes)


def _plan_per_address(
    what: str, make: Callable[[Address], BaseServer], requested: Requested, kind: ServerKind
) -> ServePlan:
    def build() -> list[BaseServer]:
        with _closing_on_failure() as servers:
            for address in requested.addresses:
                with application_errors(f"{what} cannot be made", address):
                    servers.append(make(address))
            for server, edge in zip(servers, requested.edges, strict=False):
                configure(server, edge)
        _limit(servers, requested.limits)
        return servers

    text = f"{what} on {' '.join(_described(requested))}"
    return ServePlan(text, build, requested.addresses, [kind])


def _limit(servers: Sequence[BaseServer], limits: Mapping[str, object]) -> None:
    """Have the servers of WSGI applications use these limits, which are stronger than their attributes.

    Such a server can be of any class of the program, so it is known by having the attributes.
    """
    for server in servers:
        for name, value in limits.items():
            if hasattr(server, name):
                setattr(server, name, value)


def _described(requested: Requested) -> Iterator[str]:
    """Yield each address, with what stands before the handlers there."""
    edges: Sequence[EdgeSettings | None] = requested.edges or [None] * len(requested.addresses)
    for address, edge in zip(requested.addresses, edges, strict=True):
        yield f"{address}{_behind(edge)}"


def _behind(edge: EdgeSettings | None) -> str:
    """Return what stands before the handlers, in parentheses; "" for nothing that the settings say."""
    values = {} if edge is None else edge.values
    parts = dict.fromkeys(word for key, word in _EDGES.items() if values.get(key))
    return f" ({', '.join(parts)})" if parts else ""


_EDGES: Final = {
    "proxy_from": "PROXY",
    "allow": "address rules",
    "deny": "address rules",
    "tls_certificate": "TLS",
    "tls_client_ca": "client certificates",
}
"""What ``prefork check`` says of an address, by the settings that cause it."""


def _plan_instances(target: str, servers: list[BaseServer], requested: Requested) -> ServePlan:
    for server in servers:
        if not isinstance(server, PreForkingMixIn):
            name = type(server).__name__
            raise TargetError(
                target,
                f"an instance of {name} cannot be pre-forked, because it lacks PreForkingMixIn; "
                f"name its class instead, or derive the class from (PreForkingMixIn, {name})",
            )
    for flag, origin in (("bind", requested.binds_from), ("backlog", requested.backlog_from)):
        if origin is not None:
            reason = (
                f"a server instance listens already, so {flag} (from {origin}) has no effect; remove that "
                "setting, or name a class"
            )
            raise TargetError(target, reason)
    edges: Sequence[EdgeSettings | None] = requested.edges or [None] * len(servers)
    names = ", ".join(
        f"{type(server).__name__}{_behind(edge)}"
        for server, edge in zip(servers, edges, strict=True)
    )

    def build() -> list[BaseServer]:
        _limit(servers, requested.limits)
        return servers

    return ServePlan(f"server {names}", build, kinds=[*map(kind_of, servers)])


def _plan_factory(target: str, found: object, requested: Requested) -> ServePlan:
    if not callable(found) or isinstance(found, type):
        reason = f"--factory needs a function that returns servers, not {_kind_of(found)}"
        raise TargetError(target, reason)
    name = getattr(found, "__name__", type(found).__name__)
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise TargetError(
            target, f"the factory {name} has to work without arguments: {error}"
        ) from None
    except ValueError:  # a callable written in C has no signature
        pass

    def build() -> list[BaseServer]:
        with application_errors(f"factory {name}() failed"):
            made = found()
        several = list(made) if isinstance(made, (list, tuple)) else [made]
        if several and all(isinstance(server, BaseServer) for server in several):
            with _closing_on_failure() as servers:
                servers.extend(several)
                return _plan_instances(target, servers, requested).build()
        if len(several) == 1 and (isinstance(several[0], type) or is_application(several[0])):
            return plan(target, several[0], requested).build()
        reason = f"the factory {name}() returned {_kind_of(made)}, not {_SERVABLE}, or a list of such instances"
        raise TargetError(target, reason)

    return ServePlan(f"what the factory {name}() returns (not called)", build)


@contextlib.contextmanager
def _closing_on_failure() -> Iterator[list[BaseServer]]:
    """Yield a list for servers, and close all servers in it if the body raises."""
    servers: list[BaseServer] = []
    try:
        yield servers
    except BaseException:
        for server in servers:
            with contextlib.suppress(Exception):  # the first error is the one that is reported
                server.server_close()
        raise
