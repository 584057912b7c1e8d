"""From the TARGET of the command line to the servers that are to be served.

TARGET is ``module:attribute`` or ``file.py:attribute``. The attribute is

* a handler class: every address gets the ready-made server of its scheme;
* a server class: made once per address, as ``Class(address)``, or as
  ``Class(address, Class.RequestHandlerClass)`` if it has that class attribute. Without
  ``PreForkingMixIn`` it gets the mix-in put in front;
* a server instance that has the mix-in: it has its address, so none can be given;
* with ``--factory`` a callable without arguments that returns one of these, or several instances.

``load`` imports, ``plan`` checks everything that can be checked, ``ServePlan.build`` binds.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import inspect
import os
import re
import socket
import sys
import traceback
from pathlib import Path
from socketserver import (
    BaseRequestHandler,
    BaseServer,
    DatagramRequestHandler,
    StreamRequestHandler,
    TCPServer,
)
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from prefork.mixin import PreForkingMixIn
from prefork.servers import server_for
from prefork.workers.errors import BindError, BootError, PreforkError, TargetError
from prefork.workers.settings import ROWS, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from prefork.host.addresses import Address

WHAT_CAN_BE_SERVED: Final = (
    "a handler class (of socketserver.BaseRequestHandler), a server class (of "
    "socketserver.BaseServer), a server instance with PreForkingMixIn, or with --factory a "
    "callable that returns one"
)

_MODULE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_DATAGRAM_SCHEMES = ("udp", "unixgram")


# --- loading -------------------------------------------------------------------------------------


def load(target: str) -> object:
    """Import what TARGET names; the working directory comes first on ``sys.path``.

    TargetError: it names nothing. BootError: the application raised while it was imported; its
    report is the traceback from the application's first frame on. BindError: it made a server
    whose address could not be bound.
    """
    place, colon, path = target.rpartition(":")
    if not colon or not place or not path:
        raise TargetError(target, _malformed(target))
    _put_first_on_path(target, Path.cwd)
    found: object = _module(target, place)
    for name in path.split("."):
        found = _attribute(target, found, name)
    return found


def _malformed(target: str) -> str:
    place = target.strip(":")
    if place and (place.endswith(".py") or ":" not in target):
        return f"what is to be served there? Name it: {place}:ATTRIBUTE"
    return "it must be module:attribute or file.py:attribute"


def _put_first_on_path(target: str, directory: Callable[[], Path]) -> None:
    try:
        first = str(directory())
    except OSError as error:
        raise TargetError(target, f"the working directory is gone ({error.strerror})") from None
    if sys.path[:1] != [first]:
        sys.path.insert(0, first)


def _module(target: str, place: str) -> ModuleType:
    with _application_errors(f"{place} cannot be imported"):
        if place.endswith(".py") or os.sep in place:
            return _module_of_file(target, Path(place))
        if not _MODULE_NAME.fullmatch(place):
            raise TargetError(target, f"{place!r} is no module name")
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise  # a module that the application wants
            if _frames_of_application(error):
                raise
            raise TargetError(target, _no_module(error.name)) from None


def _module_of_file(target: str, path: Path) -> ModuleType:
    """Run a file as ``python file.py`` would find its neighbours, but under its own name."""
    if not path.is_file():
        raise TargetError(target, f"there is no file {path}")
    _put_first_on_path(target, path.resolve().parent.absolute)
    # The name of a module that is there already (a target called logging.py) stays that one's.
    name = path.stem if path.stem not in sys.modules else f"{path.stem}__target"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise TargetError(target, f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as the import statement does it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _no_module(name: str) -> str:
    neighbours = [path.stem for path in Path.cwd().glob("*.py")]
    guess = nearest(name, neighbours)
    return f"there is no module {name}" + (f"; did you mean {guess}?" if guess else "")


def _attribute(target: str, holder: object, name: str) -> object:
    try:
        return getattr(holder, name)
    except AttributeError:
        where = getattr(holder, "__name__", type(holder).__name__)
        raise TargetError(target, f"{where} has no {name}{_hint(holder, name)}") from None


def _hint(holder: object, name: str) -> str:
    guess = nearest(name, dir(holder))
    if guess is not None:
        return f"; did you mean {guess}?"
    own = getattr(holder, "__name__", None)
    servable = [
        key
        for key, value in vars(holder).items()
        if _is_servable(value) and getattr(value, "__module__", own) == own
    ]
    return f"; it has {', '.join(servable)}" if servable else ""


def _is_servable(value: object) -> bool:
    if isinstance(value, type):
        return issubclass(value, (BaseRequestHandler, BaseServer))
    return isinstance(value, PreForkingMixIn)


# --- planning: everything is checked, nothing is bound -------------------------------------------


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
                with _application_errors(f"{what} cannot be made", address):
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
        with _application_errors(f"factory {name}() failed"):
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


# --- the application's errors ----------------------------------------------------------------------


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


@contextlib.contextmanager
def _application_errors(what: str, address: Address | None = None) -> Iterator[None]:
    """Turn whatever the application raises into BootError, and a failed bind into BindError."""
    try:
        yield
    except PreforkError:
        raise
    except OSError as error:
        _raise_if_bind_failed(error, address)
        raise BootError(f"{what}: {_said(error)}", application_report(error)) from None
    except Exception as error:  # noqa: BLE001 - the application may raise anything
        raise BootError(f"{what}: {_said(error)}", application_report(error)) from None
    except SystemExit as stop:
        said = f"it called sys.exit({'' if stop.code is None else repr(stop.code)})"
        raise BootError(f"{what}: {said}", application_report(stop)) from None


def _said(error: BaseException) -> str:
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _raise_if_bind_failed(error: OSError, address: Address | None) -> None:
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in ("server_bind", "server_activate"):
            where = getattr(frame.f_locals.get("self"), "server_address", None)
            _raise_bind_error(str(address) if address is not None else _shown(where), error)


def _shown(server_address: object) -> str:
    if isinstance(server_address, tuple):
        return ":".join(map(str, server_address[:2]))
    return str(server_address)


def _raise_bind_error(where: str, error: OSError) -> NoReturn:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        reason = "the address is in use; stop what listens there, or choose another"
    elif error.errno == errno.EADDRNOTAVAIL:
        reason = "this machine does not have that address"
    raise BindError(where, reason) from None


def application_report(error: BaseException) -> str:
    """Render an application's exception without the frames through which prefork called it."""
    told = traceback.TracebackException.from_exception(error)
    _drop_our_frames(told)
    return "".join(told.format())


def _drop_our_frames(told: traceback.TracebackException) -> None:
    kept = [frame for frame in told.stack if not _is_import_machinery(frame.filename)]
    while kept and _is_ours(kept[0].filename):
        kept.pop(0)
    told.stack = traceback.StackSummary.from_list(kept)
    for other in (told.__cause__, told.__context__):
        if other is not None:
            _drop_our_frames(other)


def _frames_of_application(error: BaseException) -> bool:
    return any(
        not _is_ours(frame.f_code.co_filename)
        and not _is_import_machinery(frame.f_code.co_filename)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


_OUR_DIRECTORY = str(Path(__file__).parent.parent) + os.sep  # prefork, and what is linked into it
_IMPORT_MACHINERY = ("<frozen importlib", str(Path(importlib.__file__).parent) + os.sep)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OUR_DIRECTORY)


def _is_import_machinery(filename: str) -> bool:
    return filename.startswith(_IMPORT_MACHINERY)
