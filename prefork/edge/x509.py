"""The parts of an X.509 certificate that a server has to know, read from the bytes of a file (pure).

Python's ``ssl`` hands a certificate to OpenSSL and says nothing of what is in it, before a handshake has
shown it. For which names it is, when it ends and what kind of key it has, stands in the outer layers of
the file:

    PEM text → base64 → DER, in which every element is a tag, a length and a content

The walk goes from element to element by the positions that X.509 prescribes (RFC 5280, section 4.1), and
decodes those few that are needed. It reads the operator's own files, never bytes of a client. OpenSSL
checks all else when the certificate is loaded.
"""

from __future__ import annotations

import binascii
import calendar
import re
from collections.abc import Sequence
from typing import Final

import msgspec

_PEM = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END (?:X509 |TRUSTED )?CERTIFICATE-----",
    re.DOTALL,
)

_SEQUENCE, _VERSION, _EXTENSIONS = 0x30, 0xA0, 0xA3
_OID, _UTC_TIME, _DNS_NAME = 0x06, 0x17, 0x82
_ALTERNATIVE_NAMES: Final = bytes.fromhex("551d11")
_COMMON_NAME: Final = bytes.fromhex("550403")

_VALIDITY, _SUBJECT, _KEY = 3, 4, 5
"""Where an element stands among those of a certificate, after the version, which can be missing."""


class Parts(msgspec.Struct, frozen=True):
    """What is read. names: of hosts, in lower case, from subjectAltName, or else the common name.

    begins, ends: Unix times. key_kind: the same for all RSA keys, and for all keys on elliptic curves.
    """

    names: tuple[str, ...]
    begins: int
    ends: int
    key_kind: str


def parse_certificates(content: bytes) -> list[Parts]:
    """Return the certificates of a PEM file, in their order. ValueError: one of them is damaged."""
    found = []
    for block in _PEM.findall(content):
        try:
            found.append(_parse(binascii.a2b_base64(block)))
        except (ValueError, IndexError):
            raise ValueError("a certificate in it is damaged") from None
    return found


def _parse(data: bytes) -> Parts:
    certificate = _content(data, _SEQUENCE)
    body = _elements(_content(certificate, _SEQUENCE))
    fields = body[1:] if body[0][0] == _VERSION else body
    begins, ends = (_instant(*one) for one in _elements(fields[_VALIDITY][1]))
    algorithm = _elements(fields[_KEY][1])[0][1]
    names = _alternative_names(fields) or _common_names(fields[_SUBJECT][1])
    return Parts(
        tuple(dict.fromkeys(name.lower() for name in names)),
        begins,
        ends,
        key_kind=_content(algorithm, _OID).hex(),
    )


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Return tag and content of each element."""
    found = []
    while data:
        tag, content, data = _first(data)
        found.append((tag, content))
    return found


def _first(data: bytes) -> tuple[int, bytes, bytes]:
    """Return tag and content of the first element, and what comes after it."""
    tag, length, at = data[0], data[1], 2
    if length >= 0x80:  # then this is how many bytes the length has
        at += length & 0x7F
        length = int.from_bytes(data[2:at], "big")
    content = data[at : at + length]
    if len(content) != length:
        raise ValueError("an element is cut off")
    return tag, content, data[at + length :]


def _content(data: bytes, tag: int) -> bytes:
    found, content, _ = _first(data)
    if found != tag:
        raise ValueError("another element is expected here")
    return content


def _instant(tag: int, content: bytes) -> int:
    """Return Unix time. A year of two digits is one from 1950 to 2049."""
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    year, rest = int(text[:4]), text[4:14]
    month, day, hour, minute, second = (int(rest[at : at + 2]) for at in range(0, 10, 2))
    return calendar.timegm((year, month, day, hour, minute, second))


def _alternative_names(fields: Sequence[tuple[int, bytes]]) -> list[str]:
    for tag, content in fields:
        if tag != _EXTENSIONS:
            continue
        for _, extension in _elements(_content(content, _SEQUENCE)):
            parts = _elements(extension)
            if parts[0] == (_OID, _ALTERNATIVE_NAMES):
                names = _elements(_content(parts[-1][1], _SEQUENCE))
                return [name.decode("ascii") for kind, name in names if kind == _DNS_NAME]
    return []


def _common_names(subject: bytes) -> list[str]:
    parts = [_elements(one) for _, part in _elements(subject) for _, one in _elements(part)]
    return [
        value.decode("utf-8", "replace")
        for (_, kind), (_, value), *_ in parts
        if kind == _COMMON_NAME
    ]
