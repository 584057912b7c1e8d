r"""The PROXY protocol, versions 1 and 2: what a header says, or why it is none (pure).

A proxy that hands on the bytes of a connection puts a header before them, which says who the client
is. Version 1 is a line of text, and version 2 is binary:

    PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n
    signature (12 bytes) | version and command | family | length | addresses and extensions (TLVs)

Only a peer that is known to be a proxy may be asked for one, because a header is a claim and nothing
more. From such a peer the header has to come, and it has to be right in every byte. Anything else is
refused: a reader that guesses takes the bytes of a client for the word of the proxy.

The parser gets bytes and returns values. ``proxy_step.py`` reads them from a socket.
https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt is the specification.
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv6Address
from typing import Any, Final

import msgspec

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""The first twelve bytes of a header of version 2."""

LONGEST_LINE: Final = 107
"""Bytes of the longest header of version 1, with its line break."""

MOST_BYTES: Final = 16 + 16 * 1024
"""Bytes of the longest header of version 2 that is accepted.

The specification allows 64 KiB. The largest extensions that proxies send are certificates of
clients, of some kilobytes.
"""

_HEAD: Final = 16
"""Bytes of a header of version 2 before its addresses."""

_LENGTHS: Final = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
"""The bytes of the addresses, by family and protocol."""

_IPV4: Final = struct.Struct("!8BHH")

_MAPPED: Final = bytes(10) + b"\xff\xff"
"""The first bytes of an IPv4 address within IPv6."""

_DATAGRAM: Final = 2


class ProxyError(ValueError):
    """The bytes are no PROXY header. The text says what is wrong with them, without showing them."""


class Header(msgspec.Struct, frozen=True):
    """What a header says.

    version: 1 or 2. is_local: the proxy speaks for itself, as in a health check. source, destination:
    the addresses of the client and of the place that it has connected to, as the socket module has
    them; None where the header has none. tlvs: type and value of each extension, in their order.
    is_datagram: the header is about datagrams. length: bytes of the header.
    """

    version: int
    is_local: bool
    source: Any
    destination: Any
    tlvs: tuple[tuple[int, bytes], ...]
    is_datagram: bool
    length: int


def end_of(data: bytes) -> int | None:
    """Return the length of the header that the data begin with; None while more bytes are needed.

    While the result is None, all bytes so far belong to the header. Raises ProxyError as soon as no
    further byte can make a header of them.
    """
    if data[:1] == SIGNATURE[:1]:
        return _end_of_binary(data)
    return _end_of_line(data)


def _end_of_binary(data: bytes) -> int | None:
    if data[:12] != SIGNATURE[: len(data)]:
        raise ProxyError("no PROXY header")
    if len(data) < _HEAD:
        return None
    length = _HEAD + int.from_bytes(data[14:16], "big")
    if length > MOST_BYTES:
        raise ProxyError(f"a header of {length} bytes, of at most {MOST_BYTES}")
    return length if len(data) >= length else None


def _end_of_line(data: bytes) -> int | None:
    if data[:6] != b"PROXY "[: len(data)]:
        raise ProxyError("no PROXY header")
    line_break = data.find(b"\n", 0, LONGEST_LINE)
    if line_break < 0 and len(data) >= LONGEST_LINE:
        raise ProxyError(f"a line of more than {LONGEST_LINE} bytes")
    return line_break + 1 or None


def parse(header: bytes) -> Header:
    """Return what a whole header says, and nothing after it. Raises ProxyError where it is malformed."""
    if header[:1] == SIGNATURE[:1]:
        return _parse_binary(header)
    return _parse_line(header)


def parse_datagram(data: bytes) -> Header:
    """Return what the header at the front of a datagram says; only version 2 knows datagrams."""
    end = end_of(data) if data[:1] == SIGNATURE[:1] else None
    if end is None:
        raise ProxyError("no PROXY header of version 2")
    return parse(data[:end])


# --- version 1

_LINE = re.compile(rb"PROXY (TCP4|TCP6) (\S{1,39}) (\S{1,39}) (\d{1,5}) (\d{1,5})\r\n")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")
_QUAD = re.compile(rb"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}")


def _parse_line(line: bytes) -> Header:
    if _UNKNOWN.fullmatch(line):
        return Header(1, False, None, None, (), False, len(line))
    match = _LINE.fullmatch(line)
    if match is None:
        raise ProxyError("a malformed line of PROXY version 1")
    hosts = [_host(match[1], host) for host in (match[2], match[3])]
    ports = [_port(port) for port in (match[4], match[5])]
    rest = () if match[1] == b"TCP4" else (0, 0)
    source, destination = ((host, port, *rest) for host, port in zip(hosts, ports, strict=True))
    return Header(1, False, source, destination, (), False, len(line))


def _host(family: bytes, host: bytes) -> str:
    if family == b"TCP4":
        if not _QUAD.fullmatch(host):
            raise ProxyError("an address that is no IPv4 address")
        return host.decode()
    packed = packed_ipv6(host.decode("ascii", "replace"))
    if packed is None:
        raise ProxyError("an address that is no IPv6 address")
    return text_of_ipv6(packed)


def _port(text: bytes) -> int:
    port = int(text)
    if port > 65_535 or (text[:1] == b"0" and text != b"0"):
        raise ProxyError("a port that is none")
    return port


# --- version 2


def _parse_binary(header: bytes) -> Header:
    version_and_command, kind = header[12], header[13]
    version, command = version_and_command >> 4, version_and_command & 0x0F
    if version != 2 or command > 1:
        raise ProxyError(f"version {version} and command {command} of PROXY, which are unknown")
    if command == 0:
        # The proxy speaks for itself; a receiver must ignore what the header says of addresses.
        return Header(2, True, None, None, (), False, len(header))
    length = _LENGTHS.get(kind)
    if length is None:
        raise ProxyError(f"family and protocol {kind:#x}, which are unknown")
    addresses = header[_HEAD : _HEAD + length]
    if len(addresses) < length:
        raise ProxyError("a header that is shorter than its addresses")
    source, destination = _ADDRESSES[kind >> 4](addresses)
    rest = header[_HEAD + length :]
    tlvs = parse_tlvs(rest) if rest else ()
    return Header(2, False, source, destination, tlvs, kind & 0x0F == _DATAGRAM, len(header))


def _no_addresses(_data: bytes) -> tuple[Any, Any]:
    return None, None


def _ipv4_addresses(data: bytes) -> tuple[Any, Any]:
    a, b, c, d, e, f, g, h, port, other_port = _IPV4.unpack(data)
    return (f"{a}.{b}.{c}.{d}", port), (f"{e}.{f}.{g}.{h}", other_port)


def _ipv6_addresses(data: bytes) -> tuple[Any, Any]:
    ports = struct.unpack_from("!HH", data, 32)
    source, destination = (
        (text_of_ipv6(data[at : at + 16]), port, 0, 0)
        for at, port in zip((0, 16), ports, strict=True)
    )
    return source, destination


def _unix_addresses(data: bytes) -> tuple[Any, Any]:
    return _unix_address(data[:108]), _unix_address(data[108:])


def _unix_address(data: bytes) -> Any:
    """Return a path as text, an abstract name as bytes, as the socket module does."""
    if data[:1] == b"\0":
        return data.rstrip(b"\0") or ""
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


_ADDRESSES: Final = {
    0: _no_addresses,
    1: _ipv4_addresses,
    2: _ipv6_addresses,
    3: _unix_addresses,
}


def parse_tlvs(data: bytes) -> tuple[tuple[int, bytes], ...]:
    """Return type and value of each extension. Raises ProxyError where one of them is cut off."""
    found = []
    while data:
        if len(data) < 3:
            raise ProxyError("an extension that is cut off")
        end = 3 + int.from_bytes(data[1:3], "big")
        if len(data) < end:
            raise ProxyError("an extension that is cut off")
        found.append((data[0], data[3:end]))
        data = data[end:]
    return tuple(found)


# --- addresses of version 6


def packed_ipv6(text: str) -> bytes | None:
    """Return the sixteen bytes of an IPv6 address, None for a text that is none."""
    try:
        return None if "%" in text else IPv6Address(text).packed
    except ValueError:
        return None


def text_of_ipv6(packed: bytes) -> str:
    """Return the text of an IPv6 address as ``ipaddress`` writes it, a mapped one as ``::ffff:192.0.2.7``."""
    if packed.startswith(_MAPPED):
        return "::ffff:" + ".".join(map(str, packed[12:]))
    return str(IPv6Address(packed))
