"""From the settings of a server to its edge: what is checked, and which steps there are (master).

A server of a pool, or one with a mix-in of ``mixins.py``, is made ready by ``prepare()``: when it
is made, and again when it begins to serve. Whatever cannot be used is refused there, before
anything is forked, and before anything is bound where the class has the settings. The second call
does nothing while the settings are the same. The command line has its settings before there is a
server: it checks them for each address (``check()``), and gives them to the server (``configure()``).
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec

from prefork.edge.access import (
    BEHIND_A_PROXY,
    Kind,
    Rule,
    Rules,
    matcher,
    parse_rule,
    why_useless,
)
from prefork.edge.access_step import access_step
from prefork.edge.authentication import authentication_step
from prefork.edge.edge import Edge, Refusals, Step, edge_of, install, refuse_too_many, remove
from prefork.edge.proxy_step import datagram_step, stream_step
from prefork.edge.watch import stamps_of
from prefork.workers.errors import MisuseError, SettingsError
from prefork.workers.layers import of_one_server
from prefork.workers.polled import descriptor_of
from prefork.workers.settings import ROWS

if TYPE_CHECKING:
    from prefork.edge.tls import Loaded, TLSFiles

_TLS_KEYS: Final = (
    *("tls_certificate", "tls_key", "tls_key_password_file", "tls_client_ca", "tls_alpn"),
    "tls_watch",
)

KEYS: Final = (
    *("edge_timeout", "proxy_from", "allow", "deny", "max_auth_failures"),
    *_TLS_KEYS,
)
"""The settings of the edge, in the table of settings. Each server has its own values."""

CONFIGURED: Final = "_prefork_edge_settings"
"""The attribute of a server whose settings are not its attributes: the command line has found them."""


_TAKEN_OVER: Final = "_prefork_taken_over"
"""The attribute of a server whose listening socket was one that encrypts."""


class EdgeSettings(msgspec.Struct, frozen=True):
    """The settings of the edge of one server, each checked by its form.

    values: by key. origins: the words for where each came from.
    """

    values: Mapping[str, Any]
    origins: Mapping[str, str]

    def error(self, key: str, reason: str) -> SettingsError:
        """Return the error for a value that cannot be used."""
        return SettingsError(key, self.values[key], self.origins[key], reason)


class Place(msgspec.Struct, frozen=True):
    """What the edge has to know of a server's socket.

    kinds: what rules can go by. is_datagram: there are no connections.
    """

    kinds: Sequence[Kind]
    is_datagram: bool = False


class Parts(msgspec.Struct, frozen=True):
    """The parts of an edge that come from its settings, checked for a place.

    tls: a ``tls.Loaded``, None for a server without TLS.
    """

    proxies: tuple[Rule, ...]
    rules: Rules
    tls: Any = None


# --- for servers


def prepare(server: Any, *, serves: bool = True, given: Any = None) -> None:
    """Give a server object the edge that its attributes ask for. SettingsError: one cannot be used.

    serves: the server begins to serve. Before that, attributes may still be missing. given: the
    ``Settings`` of the pool, where the program has given some; they count where the server has
    nothing to say itself.
    """
    settings = settings_of(server, given)
    if serves:
        _take_handshake_out_of_accept(server)
        _refuse_unprotected(server, settings)
    asks = callable(getattr(server, "authenticate", None))
    _refuse_datagrams(server)
    context = _context_of(server, serves=serves)
    # A bound method would keep the server alive.
    made_from = settings.values, asks, getattr(context, "__func__", context), place_of(server)
    edge = edge_of(server)
    if edge is None or edge.made_from != made_from:
        remove(server)
        edge = _make(server, settings, context, made_from)
        if edge is not None:
            install(server, edge)
    if serves and edge is not None and descriptor_of(server) is None:
        key = next((key for key in KEYS if settings.values[key] != ROWS[key].default), KEYS[0])
        raise settings.error(key, "left out: requests of this server do not come from a socket")


def configure(server: Any, settings: EdgeSettings) -> None:
    """Have a server use these settings in place of its attributes, from ``prepare()`` on."""
    vars(server)[CONFIGURED] = settings


def settings_of(server: Any, given: Any = None) -> EdgeSettings:
    """Return what a server asks for; SettingsError for a value that cannot be."""
    configured: EdgeSettings | None = vars(server).get(CONFIGURED)
    if configured is not None:
        return configured
    return EdgeSettings(*of_one_server(server, KEYS, given))


def place_of(server: Any) -> Place:
    """Return what the edge has to know of a server's socket, as far as it is known by now."""
    is_datagram = getattr(server, "socket_type", None) == socket.SOCK_DGRAM
    if getattr(server, "address_family", None) == socket.AF_UNIX:
        return Place(unix_kinds(is_datagram=is_datagram), is_datagram)
    bound = getattr(server, "socket", None)
    if not isinstance(bound, socket.socket) or bound.fileno() < 0:
        return Place(("IPv4", "IPv6"), is_datagram)
    return Place(_internet_kinds(bound), is_datagram)


def unix_kinds(*, is_datagram: bool) -> Sequence[Kind]:
    """Return what rules about the clients of a Unix socket can go by."""
    return ("Unix sockets",) if is_datagram else ("Unix sockets", "accounts")


def _internet_kinds(bound: socket.socket) -> Sequence[Kind]:
    if bound.family == socket.AF_INET:
        return ("IPv4",)
    if bound.family == socket.AF_INET6:
        only = bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return ("IPv6",) if only else ("IPv4", "IPv6")
    return get_args(Kind)


def _make(server: Any, settings: EdgeSettings, context: Any, made_from: Any) -> Edge | None:
    """Return the edge of a server, None where none of its parts is asked for."""
    _, asks, _, place = made_from
    watched = _watched(settings)
    parts = check(settings, place, context)
    steps: list[Step] = []
    is_proxy = matcher(parts.proxies) if parts.proxies else None
    if is_proxy is not None:
        steps.append((datagram_step if place.is_datagram else stream_step)(is_proxy))
    rules = access_step(parts.rules) if parts.rules.allow or parts.rules.deny else None
    if rules is not None:
        steps.append(rules)
    client_is_known = len(steps)
    if parts.tls is not None:
        steps.append(_tls().tls_step(parts.tls.context))
    if asks:
        steps.append(authentication_step(server, settings.values["max_auth_failures"]))
    if not steps:
        return None  # Without an edge max_per_client holds at the accept.
    steps.insert(client_is_known, refuse_too_many)
    return Edge(
        timeout=settings.values["edge_timeout"],
        steps=steps,
        rules=rules,
        is_proxy=is_proxy,
        refusals=Refusals(),
        is_datagram=place.is_datagram,
        verifies=bool(parts.proxies) or _TAKEN_OVER in vars(server),
        end=None if parts.tls is None else _tls().end_of_tls,
        certificates=() if parts.tls is None else parts.tls.certificates,
        watched=watched,
        made_from=made_from,
    )


def _watched(settings: EdgeSettings) -> Mapping[str, Any]:
    """Return the files that are to be watched, as they are now."""
    if not settings.values["tls_watch"]:
        return {}
    files = _files(settings).all
    return dict(zip(files, stamps_of(files), strict=True))


def _refuse_unprotected(server: Any, settings: EdgeSettings) -> None:
    """Refuse a server with a mix-in whose attributes are missing or wrong: it would protect nothing, or serve no client."""
    for cls in type(server).__mro__:
        needs = vars(cls).get("needs", ())
        if needs and not any(
            settings.values.get(key) or getattr(server, key, None) for key in needs
        ):
            reason = f"{cls.__name__} needs {' or '.join(needs)}; set it, or leave the mix-in out"
            raise settings.error(needs[0], reason)
    check_key = getattr(server, "_check_key", None)
    if check_key is not None:
        check_key()


def _refuse_datagrams(server: Any) -> None:
    """Raise MisuseError for a mix-in that talks with its clients, in front of a server of datagrams."""
    for cls in type(server).__mro__:
        if vars(cls).get("needs_connections") and place_of(server).is_datagram:
            name = type(server).__name__
            raise MisuseError(
                f"{name}: {cls.__name__} needs connections, and the server has datagrams; use a stream "
                f"server, or write an authenticate() that looks at the datagram alone"
            )


def _context_of(server: Any, *, serves: bool) -> Any:
    """Return the ``tls_context`` of a server; None for none.

    A method is called only when the server begins to serve: while the object is made, the method may
    ask for what __init__() has not set yet.
    """
    context = getattr(server, "tls_context", None)
    return None if callable(context) and not serves else context


def _take_handshake_out_of_accept(server: Any) -> None:
    """Have the edge encrypt the connections of a listening socket that is an ``SSLSocket``.

    The usual recipe wraps ``server.socket``, as ``http.server.HTTPSServer`` does. The handshake then
    runs within ``accept()``, without a deadline, and a silent client holds the worker. The server gets
    a plain socket with the same descriptor, and the context that the other one had. Its
    ``verify_request()`` runs in the edge, because it may expect what ``accept()`` would have returned.
    """
    ssl = sys.modules.get("ssl")  # without the module there is no such socket
    wrapped = getattr(server, "socket", None)
    if ssl is None or not isinstance(wrapped, ssl.SSLSocket):
        return
    context, timeout = wrapped.context, wrapped.gettimeout()
    plain = socket.socket(fileno=wrapped.detach())
    plain.settimeout(timeout)
    server.socket = plain
    server.tls_context = context
    vars(server)[_TAKEN_OVER] = True


# --- what can be used


def check(settings: EdgeSettings, place: Place, context: Any = None) -> Parts:
    """Return the parts of the edge. SettingsError: a value cannot be used, or not in this place.

    context: the ``tls_context`` of the server, an ``SSLContext`` or a function that returns one.
    """
    proxies = _parsed("proxy_from", settings)
    for rule in proxies:
        if rule.uid is not None or rule.gid is not None:
            reason = "all peers of a Unix socket are proxies, or none is; write unix"
            raise settings.error("proxy_from", reason)
        if reason := why_useless(rule, (), place.kinds):
            raise settings.error("proxy_from", reason)
    kinds = BEHIND_A_PROXY if proxies else place.kinds
    rules = Rules(_parsed("allow", settings), _parsed("deny", settings))
    for key, checked, stronger in (("deny", rules.deny, ()), ("allow", rules.allow, rules.deny)):
        for rule in checked:
            if reason := why_useless(rule, stronger, kinds):
                raise settings.error(key, reason)
    return Parts(proxies, rules, _loaded(settings, place, context))


def _loaded(settings: EdgeSettings, place: Place, context: Any) -> Loaded | None:
    """Return what encrypts the connections, None for a server without TLS."""
    given = next((key for key in _TLS_KEYS if settings.values[key]), None)
    if given is None and context is None:
        return None
    if place.is_datagram:
        key = given or "tls_certificate"
        raise settings.error(key, "datagrams cannot be encrypted (there is no DTLS); use TCP")
    if context is not None:
        _refuse_files_beside_context(settings)
        return _from_program(context)
    if not settings.values["tls_certificate"]:
        raise settings.error(str(given), "it needs tls_certificate, without which there is no TLS")
    tls = _tls()
    try:
        loaded: Loaded = tls.load(_files(settings))
    except tls.TLSSettingError as error:
        raise settings.error(error.key, str(error)) from None
    return loaded


def refuse_wrong_context(cls: type, settings: EdgeSettings) -> None:
    """Raise SettingsError for a ``tls_context`` with which no server of a class could begin to serve.

    A method is not called: it belongs to a server that does not exist yet.
    """
    context = getattr(cls, "tls_context", None)
    if context is None:
        return
    _refuse_files_beside_context(settings)
    if not callable(context):
        _refuse_other_than_context(context, f"attribute {cls.__name__}.tls_context")


def _refuse_files_beside_context(settings: EdgeSettings) -> None:
    given = next((key for key in _TLS_KEYS if settings.values[key]), None)
    if given is not None:
        reason = "the server has a tls_context, which says all of this; keep one"
        raise settings.error(given, reason)


def _refuse_other_than_context(made: object, source: str) -> None:
    import ssl  # noqa: PLC0415 - see _tls()

    if not isinstance(made, ssl.SSLContext):
        allowed = "an ssl.SSLContext, or a method that returns one"
        raise SettingsError("tls_context", made, source, allowed)


def _from_program(context: Any) -> Loaded:
    made = context() if callable(context) else context
    _refuse_other_than_context(made, "the attribute or method of the server")
    _tls().note_server_names(made)
    loaded: Loaded = _tls().Loaded(made)
    return loaded


def _files(settings: EdgeSettings) -> TLSFiles:
    values = settings.values
    files: TLSFiles = _tls().TLSFiles(
        values["tls_certificate"] or (),
        values["tls_key"] or (),
        values["tls_key_password_file"],
        values["tls_client_ca"],
        values["tls_alpn"] or (),
    )
    return files


def _tls() -> Any:
    """Return the module that encrypts. It takes 15 ms to load, which only servers with TLS pay."""
    from prefork.edge import tls  # noqa: PLC0415

    return tls


def _parsed(key: str, settings: EdgeSettings) -> tuple[Rule, ...]:
    try:
        return tuple(map(parse_rule, settings.values[key] or ()))
    except ValueError as error:
        raise settings.error(key, str(error)) from None
