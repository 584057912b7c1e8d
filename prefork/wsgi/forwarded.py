"""For whom a proxy has sent a request, as fields of its head say (pure).

Any client can send such a field. So the fields are believed only where the connection comes from a proxy that the
operator has named (``forwarded_from``), and only those of one kind: either X-Forwarded-For with X-Forwarded-Proto,
or Forwarded (RFC 7239). A proxy sets the fields of one kind, and passes on what a client has put into the others.

**Who is the client.** Each proxy adds at the end of the list from whom it has got the request. The list is
therefore read from its end: addresses of the named proxies are passed over, and the first other address is the
client. What stands before that address is what the client has said, and is not believed. If all addresses are
those of proxies, the first one is the client. An entry that is no address ends the search: the client is then the
one that was found last.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from prefork.wsgi.head import RefusedRequest

Fields = Iterable[tuple[bytes, bytes]]


class Forwarded(msgspec.Struct, frozen=True):
    """What a proxy has said. client: an address, None for none. scheme: "http" or "https", None for none."""

    client: str | None = None
    scheme: str | None = None


Read = Callable[[Fields], Sequence[Forwarded]]
"""Returns the entries of a head, in their order."""


def forwarded_by(
    fields: Fields, peer: object, is_proxy: Callable[[object], bool], read: Read
) -> Forwarded | None:
    """Return for whom a request is; None where the peer is no named proxy.

    peer: the address of the connection's client, as the socket module has it. read: one of READERS.
    """
    if not is_proxy(peer):
        return None
    found = Forwarded()
    for entry in reversed(read(fields)):
        if entry.client is None:
            return found if found.client is not None else entry
        found = entry
        if not is_proxy((entry.client, 0)):
            break
    return found


# --- X-Forwarded-For, X-Forwarded-Proto


def _read_list(fields: Fields) -> Sequence[Forwarded]:
    """Return the entries of X-Forwarded-For. All have the one scheme that X-Forwarded-Proto says."""
    clients: list[bytes] = []
    schemes: list[bytes] = []
    for name, value in fields:
        if name == b"x-forwarded-for":
            clients += value.split(b",")
        elif name == b"x-forwarded-proto":
            schemes.append(value)
    # Of several schemes it is not known who has said which.
    scheme = _scheme(schemes[0].decode("latin-1")) if len(schemes) == 1 else None
    entries = [Forwarded(_address(one.decode("latin-1")), scheme) for one in clients]
    return entries or [Forwarded(None, scheme)]


def _scheme(text: str) -> str | None:
    lower = text.strip().lower()
    return lower if lower in {"http", "https"} else None


def _address(text: str) -> str | None:
    """Return the address in an entry, without a port; None for an entry that is no address."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # ::ffff:192.0.2.7, from a socket of both families
    return str(address)


# --- Forwarded

_PAIR: Final = re.compile(
    rb"[ \t]*"
    rb"(?:([!#$%&'*+\-.^_`|~0-9A-Za-z]+)="
    rb'("(?:[^"\\]|\\.)*"|[!#$%&\'*+\-.^_`|~0-9A-Za-z]+)[ \t]*)?'
    rb"([;,]|$)"
)
"""A pair, and what ends the pair: a semicolon, a comma or the end of the field. The pair may be empty."""


def _read_elements(fields: Fields) -> Sequence[Forwarded]:
    """Return the elements of Forwarded. RefusedRequest: the field is malformed.

    Pairs may be empty (RFC 7239, section 4), and so may elements, which do not count (RFC 9110, section 5.6.1).
    An element therefore ends at a comma or at the end of the field, and never at a semicolon: the element of
    the last proxy counts also if a semicolon follows its last pair.

    The client may have begun a quotation that swallows what its proxy has added. To believe nothing then would make
    the client pass for the proxy itself.
    """
    value = b",".join(value for name, value in fields if name == b"forwarded")
    entries: list[Forwarded] = []
    pairs: dict[str, str] = {}
    at, end = 0, ","
    while end:
        found = _PAIR.match(value, at)
        if found is None:
            raise RefusedRequest(400, "the field Forwarded is malformed")
        name, text, end = (part.decode("latin-1") for part in found.groups(b""))
        if name:
            pairs[name.lower()] = re.sub(r"\\(.)", r"\1", text[1:-1]) if text[0] == '"' else text
        if pairs and end != ";":
            entries.append(
                Forwarded(_address(pairs.get("for", "")), _scheme(pairs.get("proto", "")))
            )
            pairs = {}
        at = found.end()
    return entries or [Forwarded()]


READERS: Final[dict[str, Read]] = {"x-forwarded": _read_list, "forwarded": _read_elements}
"""What reads the fields of each kind."""
