"""Clients of ONC RPC: raw messages, so that a test can send what no library would."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any, Self

from prefork.rpc import xdr
from prefork.rpc.message import call, read_reply
from prefork.rpc.record import marked
from tests.support.clients import TIMEOUT, connect, family_of

if TYPE_CHECKING:
    from tests.support.clients import Address

NUMBER = 0x20000042
"""The program of the tests."""


def receive_record(client: socket.socket) -> bytes:
    """Return the next message of a connection, of one fragment; b"" where it ends."""
    mark = _exactly(client, 4)
    return _exactly(client, int.from_bytes(mark, "big") & 0x7FFFFFFF) if mark else b""


def _exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = client.recv(count - len(data))
        if not part:
            return b""
        data += part
    return data


class Client:
    """A client on one connection or one datagram socket. The numbers of its calls begin at 1."""

    def __init__(self, address: Address, *, datagrams: bool = False) -> None:
        self.xid = 0
        self._datagrams = datagrams
        if datagrams:
            self.sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
            self.sock.settimeout(TIMEOUT)
            self.sock.connect(address)
        else:
            self.sock = connect(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, message: bytes) -> None:
        """Send a message."""
        self.sock.sendall(message if self._datagrams else marked(message))

    def receive(self) -> bytes:
        """Return the next message, b"" at the end of the connection."""
        return self.sock.recv(65536) if self._datagrams else receive_record(self.sock)

    def ask(
        self, procedure: int, arguments: bytes = b"", *, version: int = 1, again: bool = False
    ) -> tuple[int, bytes]:
        """Call a procedure; return the status of the reply and the bytes of the result.

        again: whether the call is sent again, up to 40 times, when no reply has come within the timeout.
        """
        self.xid += 1
        message = call(self.xid, NUMBER, version, procedure, arguments)
        self.send(message)
        tries = 40 if again else 0
        while True:
            try:
                data = self.receive()
            except TimeoutError:
                if not tries:
                    raise
                tries -= 1
                self.send(message)
                continue
            if not data:
                raise ConnectionResetError("the connection has ended")
            xid, status, result = read_reply(data)
            if xid == self.xid:
                return status, result

    def add(self, a: int, b: int) -> int:
        """Return what procedure 1 makes of two numbers."""
        status, result = self.ask(1, struct.pack(">2i", a, b))
        assert status == 0
        value: int = struct.unpack(">i", result)[0]
        return value

    def value(self, procedure: int, result: Any, arguments: bytes = b"") -> Any:
        """Return the decoded result of a procedure. result: its type of XDR."""
        status, data = self.ask(procedure, arguments)
        assert status == 0
        return xdr.decode(result, data)
