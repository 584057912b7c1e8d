"""ONC RPC behind a pool: one program on TCP, UDP and Unix sockets, every reply, and calls executed once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from prefork.rpc import AcceptStatus, AuthSys, xdr
from prefork.rpc.message import call
from prefork.rpc.record import marked
from prefork.workers.scoreboard import SlotField
from tests.support.board import board_of
from tests.support.rpc_clients import NUMBER, Client, receive_record
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

PROGRAM = """
    from tests.support.app import *
    import prefork
    from prefork.rpc import *

    class Calculator(Program):
        number, version = 0x20000042, 1

        @procedure(1)
        def add(self, a: xdr.int32, b: xdr.int32) -> xdr.int32:
            return a + b

        @procedure(2)
        def fail(self) -> None:
            raise LookupError("no such row")

        @procedure(3)
        def whoami(self) -> str:
            return str(getattr(self.client_address, "identity", None))

        @procedure(4)
        def remember(self, word: bytes) -> bytes:
            before, self.state = self.state, word
            return before

        @procedure(5)
        def count(self) -> xdr.int32:
            with open("counted", "a") as file:
                file.write("x")
            return os.path.getsize("counted")

        @procedure(6)
        def die(self) -> None:
            tell("dying", os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)

        @procedure(7)
        def wait(self) -> None:
            tell("waiting", os.getpid())
            signal.sigwait({signal.SIGUSR2})

        @procedure(8, idempotent=True)
        def big(self, size: xdr.uint32) -> bytes:
            return bytes(size)

        @procedure(9)
        def refuse(self) -> None:
            raise Refusal(AuthStatus.TOOWEAK)

        @procedure(10)
        def pid(self) -> xdr.int32:
            return os.getpid()

        @procedure(12)
        def lose(self) -> None:
            self.state = bytes(4097)
            raise ConnectionResetError("by the database")

        @procedure(11)
        def wrong(self) -> xdr.int32:
            return "five"

    class Settings:
        workers = 2
        linger = 0
        limit_message = 1 << 16

    class TCP(Settings, RPCServer):
        SETTINGS
        def when_ready(self):
            announce(tcp, udp, unix)

    class UDP(Settings, UDPRPCServer):
        pass

    class Unix(Settings, UnixRPCServer):
        pass

    log_to_stderr()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    with TCP(LOOPBACK, Calculator) as tcp, UDP(LOOPBACK, Calculator) as udp, Unix("rpc.sock", Calculator) as unix:
        prefork.serve(tcp, udp, unix)
"""


def program_with(settings: str = "pass") -> str:
    """Return the program. settings: a line of the class of the first server."""
    return PROGRAM.replace("SETTINGS", settings)


def sys_call(procedure: int, uid: int) -> bytes:
    """Return a call of a procedure by a user of AUTH_SYS."""
    body = xdr.encode(AuthSys, AuthSys(1, "host", uid, 100, (1, 2)))
    head = struct.pack(">8I", 1, 0, 2, NUMBER, 1, procedure, 1, len(body))
    return head + body + bytes(8)


def test_one_program_on_three_transports(start: Callable[..., Program], tmp_path: Path) -> None:
    """The same program answers on TCP, UDP and a Unix socket, with its failures and its users."""
    program = start(program_with())
    addresses = (program.address(), program.address(1), str(tmp_path / "rpc.sock"))
    for address, datagrams in zip(addresses, (False, True, False), strict=True):
        with Client(address, datagrams=datagrams) as client:
            assert [client.add(n, -7) for n in range(3)] == [-7, -6, -5]
            assert client.ask(0) == (AcceptStatus.SUCCESS, b"")
            assert client.ask(1, b"abc")[0] == AcceptStatus.GARBAGE_ARGS
            assert client.ask(99)[0] == AcceptStatus.PROC_UNAVAIL
            mismatch = client.ask(1, version=4)
            assert mismatch == (AcceptStatus.PROG_MISMATCH, struct.pack(">2I", 1, 1))
            client.send(sys_call(3, 1000))
            assert client.receive()[24:] == xdr.encode(str, "auth_sys:uid=1000")
            assert client.value(3, str) == "None"
            client.send(call(1, NUMBER, 1, 9))
            assert struct.unpack(">5I", client.receive()) == (1, 1, 1, 1, 5)
            assert client.ask(2)[0] == AcceptStatus.SYSTEM_ERR
        with Client(address, datagrams=datagrams) as client:
            assert client.ask(11)[0] == AcceptStatus.SYSTEM_ERR
        with Client(address, datagrams=datagrams) as client:
            assert client.ask(12)[0] == AcceptStatus.SYSTEM_ERR
    program.wait_logged("LookupError: no such row", times=3)
    program.wait_logged(r"the result of Calculator.wrong\(\): 'five' is no int32", times=3)
    program.wait_logged(r"ProcedureError: Calculator.lose\(\) raised ConnectionResetError", times=3)
    assert not program.logged("client went away")
    program.wait_logged(r"refused a call .*Calculator.add\(\): 8 bytes are expected", times=1)
    assert program.stop() == 0


def test_state_goes_with_the_connection(start: Callable[..., Program]) -> None:
    """What a procedure keeps of a connection is there in the next call, in whichever worker, and over a reload."""
    program = start(program_with())
    with Client(program.address()) as client, Client(program.address()) as other:
        assert client.value(4, bytes, xdr.encode(bytes, b"one")) == b""
        assert other.value(4, bytes, xdr.encode(bytes, b"else")) == b""
        pid = client.value(10, xdr.int32)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: pid not in program.workers(), "the worker has left")
        assert client.value(4, bytes, xdr.encode(bytes, b"two")) == b"one"
        program.signal(signal.SIGHUP)
        program.wait_logged("reloaded")
        assert client.value(4, bytes, xdr.encode(bytes, b"three")) == b"two"
        assert other.value(4, bytes, xdr.encode(bytes, b"")) == b"else"


def test_repeated_call_is_executed_once(start: Callable[..., Program], tmp_path: Path) -> None:
    """A datagram that comes again gets the same reply, from any worker, and is not executed again."""
    program = start(program_with())
    counted = tmp_path / "counted"
    with Client(program.address(1), datagrams=True) as client:
        again = call(77, NUMBER, 1, 5)
        replies = set()
        for _ in range(20):
            client.send(again)
            replies.add(client.receive())
        assert len(replies) == 1
        assert counted.read_text() == "x"
        client.send(call(78, NUMBER, 1, 5))
        client.receive()
        assert counted.read_text() == "xx"


def test_call_that_is_in_hand_is_not_begun_again(start: Callable[..., Program]) -> None:
    """While a worker executes a call, its repetition does nothing; when the worker dies, it gets SYSTEM_ERR."""
    program = start(program_with())
    with Client(program.address(1), datagrams=True) as client:
        client.send(call(1, NUMBER, 1, 7))
        pid = program.told("waiting")
        for _ in range(3):
            client.send(call(1, NUMBER, 1, 7))
        assert client.add(2, 3) == 5  # by the other worker, after the repetitions
        os.kill(pid, signal.SIGUSR2)
        assert client.receive()[:4] == b"\0\0\0\1"
        assert len(program.all_told("waiting")) == 1

        client.send(call(2, NUMBER, 1, 6))
        pid = program.told("dying")
        wait_until(lambda: pid not in program.workers(), "the worker is dead")
        client.send(call(2, NUMBER, 1, 6))
        assert client.receive() == struct.pack(">6I", 2, 1, 0, 0, 0, AcceptStatus.SYSTEM_ERR)
        assert len(program.all_told("dying")) == 1


def test_replies_of_all_sizes(start: Callable[..., Program]) -> None:
    """A long reply is one record; one that no datagram has room for is SYSTEM_ERR and logged."""
    program = start(program_with())
    with Client(program.address()) as client:
        assert len(client.value(8, bytes, struct.pack(">I", 3_000_000))) == 3_000_000
    with Client(program.address(1), datagrams=True) as client:
        assert len(client.value(8, bytes, struct.pack(">I", 60_000))) == 60_000
        assert client.ask(8, struct.pack(">I", 66_000))[0] == AcceptStatus.SYSTEM_ERR
    program.wait_logged(r"the reply of Calculator.big\(\) has 66028 bytes, and at most 65507")


def test_calls_without_a_pause(start: Callable[..., Program]) -> None:
    """Calls that are sent without waiting are answered in their order, cut into whatever pieces."""
    program = start(program_with())
    with Client(program.address()) as client:
        calls = [call(n, NUMBER, 1, 1, struct.pack(">2i", n, 1)) for n in range(200)]
        stream = b"".join(map(marked, calls))
        chance = random.Random(7)
        while stream:
            size = chance.randint(1, 2000)
            client.sock.sendall(stream[:size])
            stream = stream[size:]
        replies = [client.receive() for _ in calls]
    assert [struct.unpack(">7I", one)[0] for one in replies] == list(range(200))
    assert [struct.unpack(">7I", one)[6] for one in replies] == list(range(1, 201))


def test_bytes_of_strangers(start: Callable[..., Program]) -> None:
    """Records and datagrams of chance bytes cost their connection at most: no worker dies and nothing is a traceback."""
    program = start(program_with())
    before = program.wait_workers(2 + 1)  # and the lot
    chance = random.Random(7)
    good = call(5, NUMBER, 1, 1, struct.pack(">2i", 4, 5))
    for number in range(150):
        if number % 3 == 0:
            data = chance.randbytes(chance.randrange(80))
        else:
            changed = bytearray(good)
            changed[chance.randrange(len(good))] = chance.randrange(256)
            data = bytes(changed)
        with Client(program.address(1), datagrams=True) as client:
            client.send(data)
        with Client(program.address()) as client, contextlib.suppress(ConnectionError):
            client.sock.sendall(data if number % 2 else marked(data))
            client.sock.shutdown(socket.SHUT_WR)
            receive_record(client.sock)
    with Client(program.address()) as client, Client(program.address(1), datagrams=True) as other:
        assert client.add(1, 2) == other.add(1, 2) == 3
    assert program.workers() == before
    assert not program.logged("request failed")
    assert len(program.logged("refused a call")) <= 60  # one a second for each worker and kind


@pytest.mark.parametrize("message", [struct.pack(">I", 0x80000000 | (1 << 16) + 1), bytes(8192)])
def test_records_have_bounds(start: Callable[..., Program], message: bytes) -> None:
    """A record that is too long, or of fragments without end, ends its connection and nothing else."""
    program = start(program_with())
    with Client(program.address()) as client:
        client.sock.sendall(message)
        assert receive_record(client.sock) == b""
    program.wait_logged("refused a call .*a record of")


LONG_REPLY = marked(call(1, NUMBER, 1, 8, struct.pack(">I", 1 << 25)))
"""A call whose reply is more than the kernel takes for a client that does not read."""


@pytest.mark.parametrize("message", [b"\x80\0", LONG_REPLY], ids=["a part", "reply"])
def test_wait_for_a_client_can_be_cancelled(start: Callable[..., Program], message: bytes) -> None:
    """A call whose client sends a part of it, or does not read the reply, ends at soft_timeout, as any request does."""
    program = start(program_with("soft_timeout = 0.4"))
    with Client(program.address()) as client:
        client.sock.sendall(message)
        program.wait_logged("request cancelled reason=soft_timeout .*record.py")
    assert program.stop() == 0


def test_slow_record_has_a_time(start: Callable[..., Program]) -> None:
    """A client that does not end what it has begun is cut off after message_timeout."""
    program = start(program_with("message_timeout = 0.1"))
    with Client(program.address()) as client:
        client.sock.sendall(b"\x80\0")
        assert receive_record(client.sock) == b""
    with board_of(program.pid) as scores:
        wait_until(lambda: scores.total(SlotField.CLIENT_TIMEOUTS) == 1, "a timeout is counted")
