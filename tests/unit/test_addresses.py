"""Addresses: text to value and back, and what bound sockets say."""

from __future__ import annotations

import os
import socket
import string
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.host.addresses import LONGEST_PATH, Address
from prefork.workers.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("canonical", "text"),
    [
        ("tcp://127.0.0.1:8000", "127.0.0.1:8000"),
        ("tcp://localhost:0", "localhost:0"),
        ("tcp://0.0.0.0:80", ":80"),
        ("tcp://[::]:80", "[::]:80"),
        ("tcp://[::1]:80", "tcp://[0:0::1]:80"),
        ("tcp://[fe80::1%eth0]:80", "[fe80::1%eth0]:80"),
        ("udp://10.0.0.1:53", "udp://10.0.0.1:53"),
        ("udp://0.0.0.0:53", "udp://:53"),
        ("unix:/run/app.sock", "unix:/run/app.sock"),
        ("unix:/run/app.sock", "unix:///run/app.sock"),
        ("unix:app.sock", "unix:app.sock"),
        ("unix:@app", "unix:@app"),
        ("unixgram:/run/log", "unixgram:/run/log"),
        ("unixgram:@log", "unixgram:@log"),
        ("fd://3", "fd://3"),
        ("fd://3", "fd://03"),
    ],
)
def test_texts_that_are_addresses(canonical: str, text: str) -> None:
    """Every way to write an address has one canonical text, which means the same."""
    address = Address.parse(text)
    assert str(address) == canonical
    assert Address.parse(canonical) == address


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        ("such as 127.0.0.1:8000", ""),
        ("the port is missing: nonsense:8000", "nonsense"),
        (":8000 for all addresses", "8000"),
        ("is written in brackets, such as [::1]:8000", "::1:80"),
        ("[1::2::3] is no IPv6 address", "[1::2::3]:80"),
        ("such as 127.0.0.1:8000", "[::1]"),
        ("0 to 65535", "a:65536"),
        ("such as 127.0.0.1:8000", "a:123456"),
        ("such as 127.0.0.1:8000", "a:-1"),
        ("such as 127.0.0.1:8000", "a: 1"),
        ("such as 127.0.0.1:8000", "a b:1"),
        ("such as 127.0.0.1:8000", "a:٣"),
        ("there is no scheme http; write a:1", "http://a:1"),
        ("has its scheme: unix:/run/x", "/run/x"),
        ("such as 127.0.0.1:8000", "tcp://a:1/path"),
        ("such as 127.0.0.1:8000", "user@a:1"),
        ("each part has 63 letters at most", "a" * 64 + ":1"),
        ("each part has 63 letters at most", "a." + "b" * 64 + ".c:1"),
        ("each part has 63 letters at most", "\u00e9" * 64 + ":1"),
        ("the whole name has 253", ".".join(["a" * 63] * 4) + ":1"),
        ("such as 127.0.0.1:8000", "-a:1"),
        ("the port is missing: 127.0.0.1:8000", "127.0.0.1"),
        ("1.2.3 is no IPv4 address", "1.2.3:4"),
        ("256.1.1.1 is no IPv4 address", "256.1.1.1:4"),
        ("needs a path", "unix:"),
        ("needs a path", "unix:@"),
        ("printable", "unix:/a\0b"),
        ("printable", "unixgram:/a\nb"),
        ("the path has 108 bytes", "unix:/" + "x" * 107),
        ("a number, such as fd://3", "fd://"),
        ("a number, such as fd://3", "fd://x"),
        ("standard streams", "fd://0"),
        ("standard streams", "fd://2"),
        ("below 1048576", "fd://99999999"),
    ],
)
def test_texts_that_are_none(hint: str, text: str) -> None:
    """Nonsense is refused with its source and a hint at what was meant."""
    with pytest.raises(SettingsError) as caught:
        Address.parse(text, "flag --bind")
    assert (caught.value.key, caught.value.value) == ("bind", text)
    assert caught.value.source == "flag --bind"
    assert hint in caught.value.allowed


_LABELS = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=9)
_HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    _LABELS.map(lambda label: f"h{label}.example"),
)
_PATHS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=2, max_size=30
).filter(lambda path: path[0] not in "@/" and len(path.encode()) < LONGEST_PATH)
_ADDRESSES = st.one_of(
    st.builds(Address, st.sampled_from(["tcp", "udp"]), _HOSTS, st.integers(0, 65_535)),
    st.builds(
        lambda scheme, start, path: Address(scheme, path=start + path),
        st.sampled_from(["unix", "unixgram"]),
        st.sampled_from(["", "/", "\0"]),
        _PATHS,
    ),
    st.builds(lambda fd: Address("fd", fd=fd), st.integers(3, 1_000)),
)


@given(_ADDRESSES)
def test_canonical_text_round_trips(address: Address) -> None:
    """``str()`` of any address parses to an equal one."""
    assert Address.parse(str(address)) == address


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """Parsing ends in one of two ways, and an address always has a canonical text."""
    try:
        address = Address.parse(text)
    except SettingsError:
        return
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("scheme", ["unix", "unixgram"])
def test_path_need_not_be_utf_8(scheme: str) -> None:
    """A path is bytes: what is no UTF-8 of it reaches bind() as it is, and is escaped where it is shown."""
    address = Address.parse(os.fsdecode(scheme.encode() + b":/run/caf\xe9"))
    assert os.fsencode(address.sockaddr) == b"/run/caf\xe9"  # type: ignore[arg-type]  # a path
    assert str(address) == scheme + r":/run/caf\udce9"
    with pytest.raises(SettingsError):
        Address.parse(f"{scheme}:/run/caf\ud800")


def test_sockaddr_is_what_bind_takes() -> None:
    """Internet addresses are pairs, Unix addresses are paths; a descriptor is bound already."""
    assert Address.parse(":80").sockaddr == ("0.0.0.0", 80)
    assert Address.parse("[::1]:80").sockaddr == ("::1", 80)
    assert Address.parse("unix:/a").sockaddr == "/a"
    assert Address.parse("unix:@a").sockaddr == "\0a"
    with pytest.raises(ValueError, match="fd://3 is bound already"):
        _ = Address.parse("fd://3").sockaddr


def test_family_as_far_as_the_text_tells() -> None:
    """A name may be of either family."""
    assert Address.parse("1.2.3.4:5").family is socket.AF_INET
    assert Address.parse("[::1]:5").family is socket.AF_INET6
    assert Address.parse("unix:@a").family is socket.AF_UNIX
    assert Address.parse("localhost:5").family is None
    assert Address.parse("fd://5").family is None


@pytest.mark.parametrize(
    ("scheme", "family", "kind", "host"),
    [
        ("tcp", socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
        ("udp", socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
        ("tcp", socket.AF_INET6, socket.SOCK_STREAM, "::1"),
        ("udp", socket.AF_INET6, socket.SOCK_DGRAM, "::1"),
    ],
)
def test_bound_internet_sockets_tell_their_port(
    scheme: str, family: int, kind: int, host: str
) -> None:
    """With port 0 asked for, the real one is told."""
    with socket.socket(family, kind) as sock:
        sock.bind((host, 0))
        port = sock.getsockname()[1]
        assert port != 0
        assert Address.of_socket(sock) == Address(scheme, host, port)  # type: ignore[arg-type]


def test_bound_unix_sockets_tell_their_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path, an abstract name, and no name at all."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("here")
        assert str(Address.of_socket(sock)) == "unixgram:here"
        (tmp_path / "here").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        assert Address.of_socket(sock) == Address("fd", fd=sock.fileno())
        sock.bind("")  # the kernel chooses an abstract name
        told = Address.of_socket(sock)
        assert str(told).startswith("unix:@")
        assert told.sockaddr == sock.getsockname().decode()


def test_names_chosen_by_others_cannot_steer_a_terminal() -> None:
    """An inherited socket may have any bytes for a name; in a title they are text."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(b"\0\x1b[2J\n\xff" + str(sock.fileno()).encode())
        assert str(Address.of_socket(sock)).startswith("unix:@\\x1b[2J\\n\\udcff")
