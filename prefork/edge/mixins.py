"""The mix-ins that put an edge before any server of ``socketserver``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any, ClassVar

from prefork.edge.access_step import credentials_of
from prefork.edge.passage import Refused
from prefork.edge.setup import prepare
from prefork.workers.errors import AuthenticationError, MisuseError
from prefork.workers.states import Rejection


def _refuse_wrong_order(cls: type) -> None:
    before = cls.__mro__[: cls.__mro__.index(EdgeMixIn)]
    first = next((base for base in before if base.__module__ == "socketserver"), None)
    if first is not None:
        mixed = [base for base in cls.__bases__ if issubclass(base, EdgeMixIn)]
        hidden = ", ".join(base.__name__ for base in mixed)
        raise MisuseError(
            f"class {cls.__name__}: {hidden} has no effect behind {first.__name__}, whose methods come "
            f"first; {_remedy(cls, mixed, first)}"
        )


def _remedy(cls: type, mixed: list[type], first: type) -> str:
    """Return what to write instead of a class whose bases stand in the wrong order."""
    server = next((base for base in mixed if issubclass(base, BaseServer)), None)
    if server is not None and not issubclass(first, BaseServer):
        # Behind a whole server a mix-in of socketserver has no effect, either.
        return (
            f"name {first.__name__} in class {server.__name__} itself, in front of its server class"
        )
    others = [base for base in cls.__bases__ if base not in mixed]
    return f"write class {cls.__name__}({', '.join(base.__name__ for base in mixed + others)})"


class EdgeMixIn(BaseServer if TYPE_CHECKING else object):  # type: ignore[misc]
    """The base of the mix-ins for the edge: one of them is enough to have all parts of it.

    The settings of the edge are class attributes, which docs/EDGE.md describes. They are checked
    before the server binds its address, and again where they have changed until it serves.
    """

    edge_timeout: float | str = 5.0
    """How long a client has for all that comes before the handler: PROXY header, TLS, authentication."""

    proxy_from: tuple[str, ...] | list[str] | str | None = None
    """A proxy, or a network of proxies, that must send a PROXY header; from all others a header is plain
    data.
    """
    allow: tuple[str, ...] | list[str] | str | None = None
    """Who may connect: a network, unix, unix:uid=N or unix:gid=N; everybody else is refused."""
    deny: tuple[str, ...] | list[str] | str | None = None
    """Who may not connect, also where allow says so: a network, unix, unix:uid=N or unix:gid=N."""

    tls_certificate: tuple[str, ...] | list[str] | str | None = None
    """A PEM file with a certificate and its chain; of several, the name that a client asks for decides."""
    tls_key: tuple[str, ...] | list[str] | str | None = None
    """A PEM file with the key of the certificate, where the certificate's own file does not have it."""
    tls_key_password_file: str | None = None
    """A file with the password of the keys."""
    tls_client_ca: str | None = None
    """A PEM file with the authorities one of which must have signed the certificate of each client."""
    tls_alpn: tuple[str, ...] | list[str] | str | None = None
    """A protocol to offer by ALPN, best first."""
    tls_context: Any = None
    """An ``ssl.SSLContext``, or a method that returns one, in place of all files."""

    max_auth_failures: int | None = 10
    """How often a client may fail to authenticate within a minute; then it is refused at once."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Attributes of which one has to be set: without any the mix-in would protect nothing."""

    def __init_subclass__(cls, **given: Any) -> None:
        """Refuse a class in which the methods of the server hide those of the mix-in: MisuseError."""
        super().__init_subclass__(**given)
        _refuse_wrong_order(cls)

    def server_bind(self) -> None:
        """Check the settings of the edge, and bind. SettingsError: one of them cannot be used."""
        prepare(self, serves=False)
        super().server_bind()

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Serve as the class behind does, with the edge that the attributes ask for now."""
        prepare(self)
        super().serve_forever(poll_interval)

    def handle_request(self) -> None:
        """Handle one request as the class behind does, with the edge that the attributes ask for now."""
        prepare(self)
        super().handle_request()


class ProxyProtocolMixIn(EdgeMixIn):
    """Mix-in for a server behind proxies that say who their clients are (PROXY versions 1 and 2).

    The class needs the attribute ``proxy_from``.
    """

    needs = ("proxy_from",)


class AccessMixIn(EdgeMixIn):
    """Mix-in for a server with rules about the addresses of its clients.

    The class needs the attribute ``allow`` or ``deny``.
    """

    needs = ("allow", "deny")


class TLSMixIn(EdgeMixIn):
    """Mix-in for a server that encrypts its connections, and may have clients show certificates.

    The class needs the attribute ``tls_certificate`` or ``tls_context``. A handler gets an
    ``ssl.SSLSocket`` as its request, and the handshake is over by then.
    """

    needs = ("tls_certificate", "tls_context")


class AuthenticationMixIn(EdgeMixIn):
    """Mix-in for a server that has its clients prove who they are, by the method ``authenticate()``."""

    def authenticate(self, request: Any, client_address: Any) -> str | None:
        """Find out who a client is; return the name, None for a client without a name (worker).

        request: the socket, after TLS where the server has it. Each ``recv()`` and ``send()`` has what
        is left of ``edge_timeout``. For a datagram, request is the pair of its bytes and the server's
        socket. client_address: a ``ClientAddress``. The handler finds the returned name there, as
        ``client_address.identity``.

        Raise AuthenticationError to refuse the client. An OSError that a call on ``request`` raises refuses
        the client, too, and so does a ConnectionError that this method raises itself. Any other exception is one
        of the program, and goes to ``handle_error()``: an OSError of a file or a database as the cause of a
        RuntimeError.
        """
        raise NotImplementedError(f"{type(self).__name__} has no authenticate()")


class PeerCredentialsMixIn(AuthenticationMixIn):
    """Mix-in for a server on a Unix socket: the kernel says which user has connected.

    The identity is ``uid=1000``. A client for whom a proxy speaks is refused, because the kernel knows the
    user of the proxy only; the proxy itself (``LOCAL``) has that user.
    """

    peer_uids: Collection[int] = ()
    """The users who may connect."""
    peer_gids: Collection[int] = ()
    """The groups whose members may connect: the effective group of the process, and no other of its groups."""

    def authenticate(self, request: Any, client_address: Any) -> str | None:
        """Return the user at the other end (worker)."""
        proxy = getattr(client_address, "proxy", None)
        if proxy is not None and not proxy.is_local:
            raise AuthenticationError("a proxy speaks for the client, whose user is not known")
        who = credentials_of(request)
        if who is None:
            raise AuthenticationError("the kernel does not say who is at the other end")
        if who.uid not in self.peer_uids and who.gid not in self.peer_gids:
            raise AuthenticationError(f"neither uid={who.uid} nor gid={who.gid} may connect")
        return f"uid={who.uid}"


class HMACMixIn(AuthenticationMixIn):
    """Mix-in for a server whose clients have a key, as ``multiprocessing.connection.Client`` does.

    The client is ``multiprocessing.connection.Client(address, authkey=key)``. Both sides prove that
    they have the key, and neither sends it. What follows is not encrypted: see ``TLSMixIn``.
    """

    needs_connections: ClassVar[bool] = True

    authkey: bytes | Mapping[str, bytes] = b""
    """The key, or several keys by name. The name is the identity; that of a single key is ``authkey``.

    A server without a key, or with one that is empty or no bytes, does not begin to serve: MisuseError. With a
    pool, ``worker_init()`` may set the key. A worker without a key refuses every client.
    """

    def _check_key(self) -> None:
        """Refuse to serve with an ``authkey`` with which no client could log in: MisuseError."""
        may_come_later = not self.authkey and hasattr(self, "worker_init")
        if not may_come_later and (reason := why_unusable(self.authkey)):
            raise MisuseError(f"{type(self).__name__}.authkey {reason}")

    def authenticate(self, request: Any, client_address: Any) -> str | None:  # noqa: ARG002 - the hook's signature
        """Return the name of the key that the client has (worker)."""
        from prefork.edge import hmac_challenge  # noqa: PLC0415 - it loads hashlib, which takes 5 ms

        authkey = self.authkey
        if reason := why_unusable(authkey):
            # Not an AuthenticationError, which would count as a failure of the client.
            raise Refused(Rejection.AUTHENTICATION, f"{type(self).__name__}.authkey {reason}")
        keys = authkey if isinstance(authkey, Mapping) else {"authkey": authkey}
        return hmac_challenge.authenticate(request, keys)


def why_unusable(authkey: object) -> str | None:
    """Return why no client can log in with one of these keys, None where each can. The text shows no key."""
    if not authkey:
        return "has no key; set it before the server begins to serve, or in worker_init()"
    keys = authkey if isinstance(authkey, Mapping) else {"": authkey}
    for name, key in keys.items():
        named = f" of {name!r}" if name else ""
        if not isinstance(key, bytes):
            return f"must have bytes as the key{named}, not {type(key).__name__}; encode a text"
        if not key:
            return f"has an empty key{named}, which would protect nothing; give it one, or remove the name"
    return None
