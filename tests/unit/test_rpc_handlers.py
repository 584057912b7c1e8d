"""What a procedure knows of its client, and what follows from what it raises."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from prefork import RequestCancelled
from prefork.edge.client import client_address
from prefork.rpc import AuthSys, Program, procedure, xdr
from prefork.rpc.dispatch import task_of
from prefork.rpc.handler import RPCDatagramHandler, execute
from prefork.rpc.message import call, read_reply
from prefork.rpc.program import Programs

NUMBER = 7
SYS = xdr.encode(AuthSys, AuthSys(1, "host", 1000, 100))
PLAIN = ("192.0.2.7", 4711)


class Asked(Program):
    """Says what it knows, or raises."""

    number, version = NUMBER, 1
    raised: BaseException

    @procedure(1, idempotent=True)
    def client(self) -> str:
        """Return what is known of the client."""
        address = self.client_address
        return f"{address[0]} {getattr(address, 'identity', '-')} {self.credentials is not None}"

    @procedure(2, idempotent=True)
    def fail(self) -> None:
        """Raise."""
        raise self.raised


def served(client: Any, number: int, credentials: bytes = b"") -> list[bytes]:
    """Execute a call; return what was sent."""
    head = struct.pack(">8I", 5, 0, 2, NUMBER, 1, number, bool(credentials), len(credentials))
    task = task_of(head + credentials + bytes(8), Programs([Asked]))
    sent: list[bytes] = []
    try:
        execute(task, None, client, b"", sent.append)
    finally:
        Asked.sent = sent  # type: ignore[attr-defined]
    return sent


def known(client: Any, credentials: bytes = b"") -> str:
    """Return what a procedure knows of this client."""
    (reply,) = served(client, 1, credentials)
    said: str = xdr.decode(str, read_reply(reply)[2])
    return said


def test_identity_of_a_client() -> None:
    """AUTH_SYS says who a client claims to be, and never replaces an identity that the edge has proved."""
    behind = client_address(PLAIN, ("127.0.0.1", 1))
    proved = client_address(PLAIN, PLAIN, identity="uid=7")

    assert known(PLAIN) == "192.0.2.7 - False"
    assert known(PLAIN, SYS) == "192.0.2.7 auth_sys:uid=1000 True"
    assert known(behind, SYS) == "192.0.2.7 auth_sys:uid=1000 True"
    assert known(proved, SYS) == "192.0.2.7 uid=7 True"
    assert known(proved) == "192.0.2.7 uid=7 False"


@pytest.mark.parametrize(
    "error", [OSError("no file"), LookupError(), RequestCancelled(), SystemExit()]
)
def test_exception_is_answered_and_goes_on(error: BaseException) -> None:
    """Whatever a procedure raises is answered by SYSTEM_ERR once, and raised again for the server."""
    Asked.raised = error
    with pytest.raises(type(error)):
        served(PLAIN, 2)
    assert [read_reply(reply) for reply in Asked.sent] == [(5, 5, b"")]  # type: ignore[attr-defined]


class Socket:
    """The socket of a server."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def sendto(self, data: bytes, _address: object) -> None:
        """Keep a datagram."""
        self.sent.append(data)


class Server:
    """A server of datagrams without a memory of calls."""

    programs = Programs([Asked])
    replays = None


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 11, call(1, 7, 1, 1)[:39], bytes.fromhex("0000000100000001" + 16 * "00")]
)
def test_datagram_that_is_no_call(data: bytes) -> None:
    """A datagram that is no call gets no reply."""
    sock = Socket()
    RPCDatagramHandler((data, sock), PLAIN, Server())  # type: ignore[arg-type]
    assert sock.sent == []
