"""Clients of the programs under test: each has a timeout and says what it got, to the byte."""

from __future__ import annotations

import socket
import struct
from typing import TypeAlias

Address: TypeAlias = "tuple[str, int] | tuple[str, int, int, int] | str"

TIMEOUT = 20.0
"""Seconds a client waits for anything; a promise with a bound of its own passes that instead."""


def family_of(address: Address) -> socket.AddressFamily:
    """Return the family of an address: a text is a path or, after a NUL, an abstract name."""
    if isinstance(address, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def connect(address: Address, timeout: float = TIMEOUT) -> socket.socket:
    """Return a connected stream socket with a timeout."""
    client = socket.socket(family_of(address), socket.SOCK_STREAM)
    try:
        client.settimeout(timeout)
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def send_line(client: socket.socket, line: str) -> None:
    """Send a line."""
    client.sendall(line.encode() + b"\n")


def read_all(client: socket.socket) -> str:
    """Everything until the server closes, without the last line break."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts).decode().removesuffix("\n")


def read_to_the_end(client: socket.socket) -> str:
    """Everything until the server closes or resets the connection; only a timeout is an error."""
    try:
        return read_all(client)
    except ConnectionError:
        return ""


def ask(address: Address, line: str = "hello", timeout: float = TIMEOUT) -> str:
    """One request: connect, send a line, read the answer to its end."""
    with connect(address, timeout) as client:
        send_line(client, line)
        return read_all(client)


def send(address: Address, line: str, timeout: float = TIMEOUT) -> socket.socket:
    """Connect and send a line; the caller reads the answer and closes."""
    client = connect(address, timeout)
    send_line(client, line)
    return client


def hangs_up(address: Address, line: str, timeout: float = TIMEOUT) -> str:
    """One request that may end badly: what was answered before the connection was closed."""
    with send(address, line, timeout) as client:
        return read_to_the_end(client)


def server_of(address: Address, timeout: float = TIMEOUT) -> int:
    """Return the pid of the worker that serves one request of an ``Echo``."""
    return int(ask(address, timeout=timeout).split()[0])


def datagram_client(address: Address, timeout: float = TIMEOUT, own: str = "") -> socket.socket:
    """Return a datagram socket connected to the address, so that only replies from there arrive.

    own: the path or name that a Unix client binds, to which it is answered.
    """
    client = socket.socket(family_of(address), socket.SOCK_DGRAM)
    try:
        client.settimeout(timeout)
        if own:
            client.bind(own)
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def ask_datagram(
    address: Address, data: str = "hello", timeout: float = TIMEOUT, own: str = ""
) -> str:
    """One datagram there and one back."""
    with datagram_client(address, timeout, own) as client:
        client.send(data.encode())
        return client.recv(65536).decode()


def reset_on_close(client: socket.socket) -> None:
    """Make ``close()`` send a reset instead of an end of file."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def listens(path: object) -> bool:
    """Whether a server listens on the Unix socket with that path; its file is there a little sooner."""
    try:
        connect(str(path)).close()
    except OSError:
        return False
    return True


def can_bind(address: tuple[str, int]) -> bool:
    """Whether a new server (which sets SO_REUSEADDR, as servers do) can have this TCP address now."""
    with socket.socket(family_of(address), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen()
        except OSError:
            return False
        return True
