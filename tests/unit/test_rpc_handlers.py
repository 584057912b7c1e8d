"""What a procedure knows of its client, and what follows from what it raises."""

from __future__ import annotations

import struct
from ssl import SSLError, SSLSocket
from typing import Any

import pytest

from prefork import RequestCancelled
from prefork.edge.client import client_address
from prefork.rpc import AcceptStatus, AuthSys, Program, procedure, xdr
from prefork.rpc.dispatch import task_of
from prefork.rpc.handler import ProcedureError, RPCDatagramHandler, execute
from prefork.rpc.message import call, read_reply
from prefork.rpc.program import Programs
from prefork.rpc.replay import WAYS, Replays
from prefork.workers.worker.clients import is_clients_doing

NUMBER = 7
SYS = xdr.encode(AuthSys, AuthSys(1, "host", 1000, 100))
PLAIN = ("192.0.2.7", 4711)
MOST = 100
"""Bytes of a reply."""


class Asked(Program):
    """Says what it knows, or raises."""

    number, version = NUMBER, 1
    raised: BaseException
    kept: Any = b""
    result = "right"

    @procedure(1, idempotent=True)
    def client(self) -> str:
        """Return what is known of the client."""
        address = self.client_address
        return f"{address[0]} {getattr(address, 'identity', '-')} {self.credentials is not None}"

    @procedure(2, idempotent=True)
    def fail(self) -> None:
        """Raise."""
        raise self.raised

    @procedure(3, idempotent=True)
    def keep(self) -> str:
        """Keep a state, and return a result."""
        self.state = self.kept
        return self.result

    @procedure(4)
    def once(self) -> None:
        """Do what must not be done twice."""


def served(
    client: Any, number: int, credentials: bytes = b"", state: bytes | None = b""
) -> list[bytes]:
    """Execute a call; return what was sent. state: of the connection, None for a datagram."""
    head = struct.pack(">8I", 5, 0, 2, NUMBER, 1, number, bool(credentials), len(credentials))
    task = task_of(head + credentials + bytes(8), Programs([Asked]))
    sent: list[bytes] = []
    try:
        execute(task, None, client, sent.append, most=MOST, state=state)
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


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(104, "by the database"), TimeoutError("no answer"), SSLError(1, "alert")],
)
def test_error_of_a_procedure_is_not_its_clients_doing(error: OSError) -> None:
    """A procedure's connections are not its client's: their errors are logged with a traceback as all others are."""
    Asked.raised = error
    with pytest.raises(
        ProcedureError, match=rf"Asked\.fail\(\) raised {type(error).__name__}"
    ) as found:
        served(PLAIN, 2)
    assert found.value.__cause__ is error
    assert not is_clients_doing(found.value, SSLSocket.__new__(SSLSocket))
    assert [read_reply(reply)[1] for reply in Asked.sent] == [AcceptStatus.SYSTEM_ERR]  # type: ignore[attr-defined]


def test_what_cannot_be_kept_or_sent_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state or a result without room is answered by SYSTEM_ERR, and not by SUCCESS on a connection that then ends."""
    for kept, result, error, match in (
        (bytes(4097), "right", ValueError, "state has 4097 bytes, and at most 4096"),
        ("text", "right", TypeError, "state must be bytes"),
        (
            b"",
            100 * "x",
            ValueError,
            r"the reply of Asked\.keep\(\) has 128 bytes, and at most 100",
        ),
    ):
        monkeypatch.setattr(Asked, "kept", kept)
        monkeypatch.setattr(Asked, "result", result)
        with pytest.raises(error, match=match):
            served(PLAIN, 3)
        assert [read_reply(reply)[1] for reply in Asked.sent] == [AcceptStatus.SYSTEM_ERR]  # type: ignore[attr-defined]
    monkeypatch.setattr(Asked, "kept", bytes(4097))
    monkeypatch.setattr(Asked, "result", "right")
    (reply,) = served(PLAIN, 3, state=None)  # UDP has no connection that would keep it
    assert read_reply(reply)[1] == AcceptStatus.SUCCESS


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
    replays: Replays | None = None


def test_call_without_a_place_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Where a small limit_replays has no place for a call, the call is not executed, and the log names the setting."""
    sock, server = Socket(), Server()
    server.replays = Replays(1, 16)
    again = call(1, NUMBER, 1, 4)
    claims = [server.replays.claim(b"%d" % number, PLAIN) for number in range(WAYS)]
    RPCDatagramHandler((again, sock), PLAIN, server)  # type: ignore[arg-type]
    assert sock.sent == []
    assert "dropped a call client=192.0.2.7:4711" in caplog.text
    assert "raise limit_replays (1)" in caplog.text
    for claim in claims:
        assert claim is not None
        claim.release()
    RPCDatagramHandler((again, sock), PLAIN, server)  # type: ignore[arg-type]
    assert [read_reply(reply)[1] for reply in sock.sent] == [AcceptStatus.SUCCESS]
    server.replays.close()


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 11, call(1, 7, 1, 1)[:39], bytes.fromhex("0000000100000001" + 16 * "00")]
)
def test_datagram_that_is_no_call(data: bytes) -> None:
    """A datagram that is no call gets no reply."""
    sock = Socket()
    RPCDatagramHandler((data, sock), PLAIN, Server())  # type: ignore[arg-type]
    assert sock.sent == []
