"""``ClientAddress``: the address of a client, with what the edge has learned of the client (worker)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

__all__ = ["ClientAddress", "ProxyFacts", "TLSFacts"]


class TLSFacts(msgspec.Struct, frozen=True):
    """What TLS has settled with a client.

    version: such as "TLSv1.3". cipher: the name of the cipher suite. server_name: the name that the
    client asked for (SNI), None for none. alpn: the protocol that was chosen, None for none. resumed:
    whether the handshake resumed an earlier session. certificate: the certificate of the client as
    ``SSLSocket.getpeercert()`` returns it, None without one.
    """

    version: str
    cipher: str
    server_name: str | None = None
    alpn: str | None = None
    resumed: bool = False
    certificate: dict[str, Any] | None = None


class ProxyFacts(msgspec.Struct, frozen=True):
    """What a proxy has said of a client, beside the address.

    version: of the PROXY protocol, 1 or 2. is_local: the proxy speaks for itself, as in a health check.
    tlvs: type and value of each extension of version 2, in the order of the header. destination: the
    address to which the client had connected; None where the header has none.
    """

    version: int
    is_local: bool = False
    tlvs: tuple[tuple[int, bytes], ...] = ()
    destination: Any = None

    def tlv(self, kind: int) -> bytes | None:
        """Return the value of the first extension of this type, None where there is none."""
        return next((value for found, value in self.tlvs if found == kind), None)


class ClientAddress:
    """The address of a client behind an edge: what handlers get as ``client_address``.

    The object *is* the plain address, a tuple for TCP and UDP and a str or bytes for Unix sockets. It
    compares, hashes, unpacks, formats and pickles as the plain one does, so that code which knows
    nothing of an edge works as before. In addition it has these attributes:

    peer: the plain address of the other end of the socket. With a proxy in between that is the
    proxy, otherwise the client itself.
    identity: who the client is, as authentication or the client's certificate says; None where
    nothing has asked.
    tls: ``TLSFacts`` of an encrypted connection, None for a plain one.
    proxy: ``ProxyFacts`` of a connection with a PROXY header, None for one without.
    """

    peer: Any = None
    identity: Any = None
    tls: TLSFacts | None = None
    proxy: ProxyFacts | None = None


class _InternetClient(ClientAddress, tuple[Any, ...]):  # noqa: SLOT001 - the attributes are its own
    """The address of a client of TCP or UDP."""


class _UnixClient(ClientAddress, str):  # noqa: SLOT000 - the attributes are its own
    """The path of a client of a Unix socket, "" for a client without one."""

    # Without this one the text in a log line would be that of object.
    __str__ = str.__str__


class _AbstractUnixClient(ClientAddress, bytes):
    """The abstract name of a client of a Unix socket."""


_KINDS: Final[dict[type, Any]] = {
    tuple: _InternetClient,
    str: _UnixClient,
    bytes: _AbstractUnixClient,
}


def client_address(
    address: Any,
    peer: Any,
    *,
    identity: Any = None,
    tls: TLSFacts | None = None,
    proxy: ProxyFacts | None = None,
) -> Any:
    """Return an address with these attributes.

    An address of another type is returned as it is: None, which Unix datagrams without a sender
    have, and whatever else an overridden ``get_request()`` may return.
    """
    kind = _KINDS.get(type(address))
    if kind is None:
        return address
    known = kind(address)
    known.__dict__ = {"peer": peer, "identity": identity, "tls": tls, "proxy": proxy}
    return known


def is_plain_address(address: Any) -> bool:
    """Return whether an address is one of those of which ``client_address()`` makes another object."""
    return type(address) in _KINDS


# --- through the lot


def packed(address: Any) -> tuple[Any, Any]:
    """Return the plain address, and what else the lot keeps of a client; None for nothing.

    What else: peer, identity and what the proxy said. All of it has types that ``msgspec`` encodes.
    """
    if not isinstance(address, ClientAddress):
        return address, None
    proxy = address.proxy and msgspec.structs.astuple(address.proxy)
    plain = next((kind(address) for kind in _KINDS if isinstance(address, kind)), None)
    return plain, (address.peer, address.identity, proxy)


def unpacked(address: Any, kept: Any) -> Any:
    """Return the client address again, from the plain one and from what ``packed()`` returned."""
    peer, identity, proxy = kept
    facts = None
    if proxy is not None:
        version, is_local, tlvs, destination = proxy
        facts = ProxyFacts(version, is_local, tuple(map(tuple, tlvs)), _plain(destination))
    return client_address(address, _plain(peer), identity=identity, proxy=facts)


def _plain(address: Any) -> Any:
    """Return an address as Python has it: a decoded message has a list for each tuple."""
    return tuple(address) if isinstance(address, list) else address
