"""The parser of PROXY headers: strict, bounded, and never surprised by bytes."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.edge import proxy
from prefork.edge.proxy import MOST_BYTES, SIGNATURE, Header, ProxyError, end_of, parse

LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n"


def binary(
    addresses: bytes = b"", *, command: int = 0x21, family: int = 0x11, tlvs: bytes = b""
) -> bytes:
    """Return a header of version 2."""
    body = addresses + tlvs
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


IPV4 = (
    socket.inet_aton("192.0.2.7") + socket.inet_aton("198.51.100.1") + struct.pack("!HH", 4711, 443)
)
IPV6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.1")
    + struct.pack("!HH", 4711, 443)
)
UNIX = b"/run/client".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")
TLVS = b"\x01\0\x02h2" + b"\x05\0\0"

WHOLE = [
    (LINE, ("192.0.2.7", 4711), ("198.51.100.1", 443)),
    (
        b"PROXY TCP6 2001:DB8::7 ::1 0 65535\r\n",
        ("2001:db8::7", 0, 0, 0),
        ("::1", 65535, 0, 0),
    ),
    (
        b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n",
        ("::ffff:192.0.2.7", 1, 0, 0),
        ("::1", 2, 0, 0),
    ),
    (b"PROXY UNKNOWN\r\n", None, None),
    (b"PROXY UNKNOWN ffff:: whatever 1 2\r\n", None, None),
    (binary(IPV4), ("192.0.2.7", 4711), ("198.51.100.1", 443)),
    (binary(IPV4, family=0x12), ("192.0.2.7", 4711), ("198.51.100.1", 443)),
    (
        binary(IPV6, family=0x21),
        ("2001:db8::7", 4711, 0, 0),
        ("::ffff:192.0.2.1", 443, 0, 0),
    ),
    (binary(UNIX, family=0x31), "/run/client", b"\0abstract"),
    (binary(family=0x00), None, None),
    (binary(IPV4, command=0x20), None, None),
    (binary(b"anything", command=0x20, family=0), None, None),
]


@pytest.mark.parametrize(("data", "source", "destination"), WHOLE)
def test_whole_headers(data: bytes, source: Any, destination: Any) -> None:
    """A header says source and destination as the socket module has them, in each version and family."""
    assert end_of(data) == end_of(data + b"more") == len(data)
    header = parse(data)
    assert (header.source, header.destination, header.length) == (source, destination, len(data))
    assert header.version == (2 if data.startswith(SIGNATURE) else 1)
    assert header.is_local == (data[12:13] == b"\x20")


@pytest.mark.parametrize("data", [one[0] for one in WHOLE])
def test_every_beginning_needs_more(data: bytes) -> None:
    """A header that comes in any pieces is neither refused nor taken too early."""
    assert [end_of(data[:length]) for length in range(len(data))] == [None] * len(data)


def test_extensions_are_kept() -> None:
    """Type and value of each extension are there, in order, also of empty ones."""
    header = parse(binary(IPV4, tlvs=TLVS))

    assert header.tlvs == ((1, b"h2"), (5, b""))
    assert not header.is_datagram
    assert parse(binary(IPV4, family=0x12)).is_datagram


MALFORMED = [
    b"GET / HTTP/1.1\r\n",
    b"PROXY\r\n",
    b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
    b"proxy TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1 \r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 1\r\n",
    b"PROXY TCP4 1.2.3.04 1.2.3.4 1 1\r\n",
    b"PROXY TCP4 1.2.3 1.2.3.4 1 1\r\n",
    b"PROXY TCP4 256.2.3.4 1.2.3.4 1 1\r\n",
    b"PROXY TCP4 ::1 ::1 1 1\r\n",
    b"PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n",
    b"PROXY TCP6 fe80:::1 ::1 1 1\r\n",
    b"PROXY TCP5 1.2.3.4 1.2.3.4 1 1\r\n",
    b"PROXY UNKNOWNX\r\n",
    b"PROXY UNKNOWN\r\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r" + b"\r" * 100,
    b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
    SIGNATURE[:5] + b"x",
    binary(IPV4, command=0x11),
    binary(IPV4, command=0x22),
    binary(IPV4, command=0x31),
    binary(IPV4, family=0x10),
    binary(IPV4, family=0x13),
    binary(IPV4, family=0x41),
    binary(IPV4[:-1]),
    binary(IPV4, family=0x21),
    binary(IPV4, tlvs=b"\x01"),
    binary(IPV4, tlvs=b"\x01\0\x05h2"),
    binary(b"", tlvs=b"x" * (MOST_BYTES + 1)),
]


@pytest.mark.parametrize("data", MALFORMED)
def test_malformed_headers(data: bytes) -> None:
    """Whatever is not a header in every byte is refused, and the reason does not repeat the bytes."""

    def read() -> None:
        end = end_of(data)
        assert end is not None
        parse(data[:end])

    with pytest.raises(ProxyError) as caught:
        read()
    assert str(caught.value).isprintable()


def test_length_is_bounded() -> None:
    """A reader never has to keep more than the bounds say, whatever a peer announces."""
    endless = SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 65_535)

    with pytest.raises(ProxyError, match="at most"):
        end_of(endless)
    with pytest.raises(ProxyError):
        end_of(b"PROXY " + b"x" * 101)
    assert end_of(b"PROXY " + b"x" * 100) is None


def test_only_version_2_knows_datagrams() -> None:
    """A line at the front of a datagram, or half a header, is refused."""
    whole = binary(IPV4, family=0x12)

    assert proxy.parse_datagram(whole + b"data").length == len(whole)
    for data in (LINE, whole[:-1], b"", b"data"):
        with pytest.raises(ProxyError):
            proxy.parse_datagram(data)


HEADERS = st.sampled_from([one[0] for one in WHOLE] + MALFORMED)


@given(HEADERS, st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=3)), max_size=4))
def test_damaged_headers(data: bytes, damage: list[tuple[int, bytes]]) -> None:
    """Damage of any kind ends in a header, in ProxyError or in a wish for more, and in nothing else."""
    for at, put in damage:
        data = data[:at] + put + data[at + 1 :]
    with contextlib.suppress(ProxyError):
        end = end_of(data)
        if end is None:
            assert len(data) < MOST_BYTES
        else:
            assert isinstance(parse(data[:end]), Header)


@given(st.binary(max_size=400))
def test_any_bytes(rest: bytes) -> None:
    """Any bytes after the beginning of a header do as little harm."""
    for start in (
        b"",
        b"PROXY ",
        SIGNATURE,
        SIGNATURE + b"\x21\x11",
        SIGNATURE + b"\x21\x21\0\x30",
    ):
        with contextlib.suppress(ProxyError):
            end = end_of(start + rest)
            if end is not None:
                parse((start + rest)[:end])


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**128 - 1), st.integers(0, 65_535))
def test_addresses_survive(v4: int, v6: int, port: int) -> None:
    """The addresses of a header are those that the socket module would write."""
    four = binary(v4.to_bytes(4, "big") * 2 + struct.pack("!HH", port, port))
    six = binary(v6.to_bytes(16, "big") * 2 + struct.pack("!HH", port, port), family=0x21)

    assert parse(four).source == (socket.inet_ntoa(v4.to_bytes(4, "big")), port)
    host = parse(six).source[0]
    assert socket.inet_pton(socket.AF_INET6, host) == v6.to_bytes(16, "big")
