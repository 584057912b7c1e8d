"""Certificates as files: whether a server can use them, and which of several a client gets (master)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec

from prefork.edge.x509 import parse_certificates

_Value = TypeVar("_Value")


class Certificate(msgspec.Struct, frozen=True):
    """What a server has to know of one of its certificates.

    file: the path. names: the names of hosts, in lower case, from subjectAltName; the common name of
    the subject where there is none. begins, ends: Unix times. key_kind: tells kinds of keys apart.
    """

    file: str
    names: tuple[str, ...]
    begins: float
    ends: float
    key_kind: str = ""


def read_certificate(path: str) -> Certificate:
    """Return the first certificate of a PEM file, which is that of the server.

    Raises OSError where the file cannot be read, and ValueError where it has no certificate.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        found = parse_certificates(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not found:
        raise ValueError(f"{path} has no certificate in PEM form")
    leaf = found[0]
    return Certificate(path, leaf.names, leaf.begins, leaf.ends, leaf.key_kind)


def grouped(certificates: Sequence[Certificate]) -> list[list[int]]:
    """Return the places of the certificates, those together that share a context.

    These have the same names and keys of different kinds, of which OpenSSL chooses the one that a client
    understands. A context has room for one certificate of each kind: another one would take its place,
    for names that it may not have. ValueError: a client could never get one of the certificates.
    """
    groups: list[list[int]] = []
    taken: set[str] = set()
    for place, one in enumerate(certificates):
        same = [group for group in groups if set(certificates[group[0]].names) == set(one.names)]
        if same and all(certificates[other].key_kind != one.key_kind for other in same[0]):
            same[0].append(place)
        elif groups and taken.issuperset(one.names):
            reason = "certificates before it have all of its names, so that no client would get it"
            raise ValueError(f"{one.file}: {reason}; leave it out")
        else:
            taken.update(one.names)
            groups.append([place])
    return groups


def why_unfit(certificate: Certificate, now: float) -> str:
    """Return why a certificate is not valid now, "" for one that is (pure). now: Unix time."""
    if now < certificate.begins:
        return f"{certificate.file} is not valid before {_day(certificate.begins)}"
    if now >= certificate.ends:
        return f"{certificate.file} has expired on {_day(certificate.ends)}; renew it"
    return ""


def _day(instant: float) -> str:
    return datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%d %H:%M UTC")


def by_name(table: Mapping[str, _Value], name: str) -> _Value | None:
    """Return what belongs to the name of a host, None for an unknown one (pure).

    table: names in lower case. One that begins with ``*.`` stands for one more label, as in
    certificates. An exact name wins.
    """
    name = name.lower().rstrip(".")
    if name in table:
        return table[name]
    _, dot, parent = name.partition(".")
    return table.get(f"*.{parent}") if dot else None


# --- clients

_SHORT: Final = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "domainComponent": "DC",
    "userId": "UID",
}


def identity_in(decoded: Mapping[str, Any]) -> str | None:
    """Return the name of a client in its certificate (pure); None where it has none.

    The name is the subject as RFC 4514 writes it, such as ``CN=alice,O=Example``, and otherwise the
    first alternative name, such as ``URI:spiffe://example.org/worker``.
    """
    if subject := decoded.get("subject", ()):
        return subject_of(subject)
    return next((f"{kind}:{value}" for kind, value in decoded.get("subjectAltName", ())), None)


def subject_of(name: Iterable[Iterable[tuple[str, str]]]) -> str:
    """Return the name of a subject or an issuer as RFC 4514 writes it (pure); "" for an empty name.

    name: as ``SSLSocket.getpeercert()`` has it.
    """
    parts = [
        "+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in part)
        for part in name
    ]
    return ",".join(reversed(parts))


def _escaped(value: str) -> str:
    text = "".join("\\" + one if one in '\\,+"<>;=' else one for one in value)
    if text[:1] in ("#", " "):
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(text) > 1 else text
