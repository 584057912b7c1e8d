"""Certificates as files: their names and dates, and whether a server can use them (master).

Python's ``ssl`` shows a certificate only after a handshake. What is needed before that is the decoder
of the module's own tests, ``_ssl._test_decode_cert()``, which every CPython has. This module is the
only one that calls it.
"""

from __future__ import annotations

import _ssl
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec

_Value = TypeVar("_Value")

DAY: Final = 86_400.0


class Certificate(msgspec.Struct, frozen=True):
    """What a server has to know of one of its certificates.

    file: the path. names: the names of hosts, in lower case, from subjectAltName; the common name of
    the subject where there is none. begins, ends: Unix times.
    """

    file: str
    names: tuple[str, ...]
    begins: float
    ends: float


def read_certificate(path: str) -> Certificate:
    """Return the first certificate of a PEM file, which is that of the server.

    Raises OSError where the file cannot be read, and ValueError where it has no certificate.
    """
    with open(path, "rb"):
        pass  # for the reason of the system, which the decoder does not give
    try:
        found: dict[str, Any] = _ssl._test_decode_cert(path)  # type: ignore[attr-defined]  # noqa: SLF001 - see above
        ends, begins = (ssl.cert_time_to_seconds(found[key]) for key in ("notAfter", "notBefore"))
    except (ssl.SSLError, KeyError) as error:
        raise ValueError(f"{path} has no certificate in PEM form") from error
    return Certificate(path, names_in(found), begins, ends)


def names_in(decoded: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of hosts in a decoded certificate (pure)."""
    others = [value for kind, value in decoded.get("subjectAltName", ()) if kind == "DNS"]
    common = [
        value for part in decoded.get("subject", ()) for kind, value in part if kind == "commonName"
    ]
    return tuple(dict.fromkeys(name.lower() for name in others or common))


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
    parts = [
        "+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in part)
        for part in decoded.get("subject", ())
    ]
    if parts:
        return ",".join(reversed(parts))
    return next((f"{kind}:{value}" for kind, value in decoded.get("subjectAltName", ())), None)


def _escaped(value: str) -> str:
    text = "".join("\\" + one if one in '\\,+"<>;=' else one for one in value)
    if text[:1] in ("#", " "):
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(text) > 1 else text
