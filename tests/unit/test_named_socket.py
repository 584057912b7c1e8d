"""The name of a socket: through JSON and back, and which address means it."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from prefork.host.named_socket import SocketName

if TYPE_CHECKING:
    from pathlib import Path


def name_of(family: int, kind: int, address: Any) -> SocketName:
    """Bind a socket and return its name, as another process reads it."""
    with socket.socket(family, kind) as sock:
        sock.bind(address)
        text = msgspec.json.encode(SocketName.of(sock.fileno()))
    return msgspec.json.decode(text, type=SocketName)


def test_tcp_address() -> None:
    """A TCP socket is meant by its host, its name and its port, and by port 0."""
    name = name_of(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
    host, port = name.sockname
    tcp = socket.AF_INET, socket.SOCK_STREAM

    assert name.fits(*tcp, (host, port))
    assert name.fits(*tcp, ("localhost", port))
    assert name.fits(*tcp, (host, 0))
    assert not name.fits(*tcp, (host, port + 1))
    assert not name.fits(*tcp, ("127.0.0.2", port))
    assert not name.fits(socket.AF_INET, socket.SOCK_DGRAM, (host, port))
    assert not name.fits(*tcp, ("no such host.invalid", port))


def test_wildcard_address() -> None:
    """A socket on every address is meant by the empty host."""
    name = name_of(socket.AF_INET, socket.SOCK_DGRAM, ("", 0))

    assert name.fits(socket.AF_INET, socket.SOCK_DGRAM, ("", name.sockname[1]))
    assert not name.fits(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", name.sockname[1]))


def test_ipv6_address() -> None:
    """Of an IPv6 address host and port count, whatever else the tuple has."""
    name = name_of(socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0))

    assert name.fits(socket.AF_INET6, socket.SOCK_STREAM, name.sockname[:2])
    assert name.fits(socket.AF_INET6, socket.SOCK_STREAM, name.sockname)


@pytest.mark.leaves_socket
@pytest.mark.parametrize("file", ["socket", os.fsdecode(b"s\xff")])
def test_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """A Unix socket is meant by its path, absolute or not, text or bytes, and also one that is no UTF-8."""
    monkeypatch.chdir(tmp_path)
    unix = socket.AF_UNIX, socket.SOCK_STREAM
    path = str(tmp_path / file)
    name = name_of(*unix, path)

    assert name.sockname == path
    assert name.fits(*unix, path)
    assert name.fits(*unix, os.fsencode(path))
    assert name.fits(*unix, file)
    assert not name.fits(*unix, path + "2")


def test_abstract_name() -> None:
    """An abstract name is no path."""
    unix = socket.AF_UNIX, socket.SOCK_STREAM
    text = f"\0prefork-test-{os.getpid()}"
    name = name_of(*unix, text)

    assert name.sockname == text
    assert name.fits(*unix, text)
    assert not name.fits(*unix, text[1:])
