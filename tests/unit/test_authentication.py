"""Ready-made authentication: peers of Unix sockets, keys as multiprocessing has them, and a bound on failures."""

from __future__ import annotations

import hmac
import os
import socket
import socketserver
import struct
import threading
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prefork
from prefork.edge.edge import edge_of
from prefork.edge.failures import Failures, client_key
from prefork.edge.hmac_challenge import (
    CHALLENGE,
    FAILURE,
    WELCOME,
    answer_to,
    authenticate,
    key_of,
)
from prefork.workers.states import Rejection
from tests.support.one_request import one_request

if TYPE_CHECKING:
    from pathlib import Path

KEYS = {"one": b"secret one", "two": b"secret two"}


class Hello(socketserver.BaseRequestHandler):
    """Greets a client by its identity."""

    def handle(self) -> None:
        """Greet."""
        self.request.sendall(f"hello {self.client_address.identity}".encode())


class Keyed(prefork.HMACMixIn, socketserver.TCPServer):
    """A server with two keys."""

    authkey = KEYS
    edge_timeout = 5.0
    errors = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Count errors of the program."""
        self.errors += 1


def refusals(server: Any) -> dict[Rejection, int]:
    """Return what the edge has refused."""
    edge = edge_of(server)
    assert edge is not None
    return dict(edge.refusals.counts)


def receive(client: socket.socket) -> bytes:
    """Return one message."""
    (length,) = struct.unpack("!i", client.recv(4, socket.MSG_WAITALL))
    return client.recv(length, socket.MSG_WAITALL)


def send(client: socket.socket, message: bytes) -> None:
    """Send one message."""
    client.sendall(struct.pack("!i", len(message)) + message)


def log_in(client: socket.socket, key: bytes, digest: str) -> bytes:
    """Do what ``multiprocessing.connection.Client`` does; digest: "" for a client of Python 3.11."""
    challenge = receive(client).removeprefix(CHALLENGE)
    proof = hmac.digest(key, challenge, digest or "md5")
    send(client, (b"{%s}" % digest.encode() if digest else b"") + proof)
    if receive(client) != WELCOME:
        return b"failure"
    mine = os.urandom(20) if not digest else b"{%s}" % digest.encode() + os.urandom(40)
    send(client, CHALLENGE + mine)
    assert receive(client) == answer_to(mine, key)
    send(client, WELCOME)
    return client.recv(100)


@pytest.mark.parametrize("digest", ["", "md5", "sha256", "sha384"])
@pytest.mark.parametrize("name", KEYS)
def test_clients_with_a_key(name: str, digest: str) -> None:
    """Clients of all versions are known by the name of their key, and the server proves its own."""
    with Keyed(("127.0.0.1", 0), Hello) as server, one_request(server) as client:
        assert log_in(client, KEYS[name], digest) == b"hello " + name.encode()


def test_client_of_multiprocessing() -> None:
    """The real client, of the running Python, logs in."""
    connection = pytest.importorskip("multiprocessing.connection")
    with Keyed(("127.0.0.1", 0), Hello) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with connection.Client(server.server_address, authkey=KEYS["two"]) as client:
            assert os.read(client.fileno(), 100) == b"hello two"
        thread.join(10)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        import multiprocessing

        with pytest.raises(multiprocessing.AuthenticationError):
            connection.Client(server.server_address, authkey=b"wrong")
        thread.join(10)
        assert refusals(server) == {Rejection.AUTHENTICATION: 1}


def test_wrong_key_gets_no_answer_to_a_challenge() -> None:
    """A client that has not passed learns nothing: its own challenge is not answered."""
    with Keyed(("127.0.0.1", 0), Hello) as server, one_request(server) as client:
        assert log_in(client, b"wrong", "sha256") == b"failure"
        with suppress(ConnectionError):
            send(client, CHALLENGE + os.urandom(20))
            assert client.recv(100) == b""
    assert refusals(server) == {Rejection.AUTHENTICATION: 1}


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff\xff\xff\xff",
        struct.pack("!i", 257) + b"x" * 257,
        struct.pack("!i", 0),
        struct.pack("!i", 2**31 - 1),
        struct.pack("!i", 5) + b"{md5}",
        struct.pack("!i", 40) + b"{sha1}" + b"x" * 34,
        struct.pack("!i", len(CHALLENGE)) + CHALLENGE,
    ],
)
def test_malformed_answers(said: bytes) -> None:
    """Whatever a client sends in place of an answer costs its connection and no more."""
    with Keyed(("127.0.0.1", 0), Hello) as server:
        with one_request(server) as client:
            receive(client)
            with suppress(OSError):  # the server has ended the connection already
                client.sendall(said)
                client.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while client.recv(100):
                    pass
        assert sum(refusals(server).values()) == 1
        assert server.errors == 0


@given(st.binary(max_size=80), st.binary(min_size=20, max_size=80))
def test_no_answer_but_the_right_one(answer: bytes, challenge: bytes) -> None:
    """No bytes pass for an answer; the answer itself does."""
    assert key_of(challenge, answer, KEYS) is None
    with suppress(prefork.AuthenticationError):
        assert key_of(challenge, answer_to(challenge, KEYS["two"]), KEYS) in ("two", None)
    assert FAILURE != WELCOME


def test_wrong_keys_do_not_serve() -> None:
    """A server whose clients could not log in does not begin to serve, and the error does not show a key."""
    wrong: list[tuple[Any, str]] = [
        ("secret", "must have bytes as the key, not str"),
        (b"", "has no key"),
        ({}, "has no key"),
        ({"alice": b""}, "has an empty key of 'alice'"),
        ({"alice": b"right", "bob": "secret"}, "must have bytes as the key of 'bob', not str"),
    ]
    for authkey, words in wrong:
        with Keyed(("127.0.0.1", 0), Hello) as server:
            server.authkey = authkey
            server.timeout = 0  # of handle_request(), if it should serve after all
            with pytest.raises(prefork.MisuseError, match=f"Keyed.authkey {words}") as caught:
                server.handle_request()
            assert "secret" not in str(caught.value)


def test_worker_without_a_key_costs_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Where ``worker_init()`` should have set the key, each client is refused, and none is blamed for it."""

    class Late(Keyed):
        authkey: Any = b""
        max_auth_failures = 1

        late: Any = b""

        def worker_init(self, worker: Any) -> None:
            """Forget the key."""

        def get_request(self) -> Any:
            """Set the key once the server is ready."""
            self.authkey = self.late
            return super().get_request()

    with Late(("127.0.0.1", 0), Hello) as server:
        for server.late in (b"", b"", "secret"):
            server.authkey = b""
            with one_request(server) as client:
                assert client.recv(10) == b""
        assert (refusals(server), server.errors) == ({Rejection.AUTHENTICATION: 3}, 0)
    (line,) = [one.getMessage() for one in caplog.records if "refused a client" in one.getMessage()]
    assert "Late.authkey has no key; set it before the server begins to serve" in line


def test_client_that_leaves_has_failed() -> None:
    """A guess counts as a failure although the client has reset the connection before the answer."""
    keys = {"one": b"secret"}
    for sent in (b"{sha256}" + bytes(32), b""):
        with pytest.raises(prefork.AuthenticationError if sent else ConnectionError):
            authenticate(Leaving(sent), keys)


class Leaving:
    """The server's side of a connection whose client sends a message, and takes nothing after the first one."""

    def __init__(self, message: bytes) -> None:
        self._data = struct.pack("!i", len(message)) + message if message else b""
        self._is_gone = False

    def sendall(self, _data: bytes) -> None:
        """Take the challenge only."""
        if self._is_gone:
            raise ConnectionResetError
        self._is_gone = True

    def recv(self, count: int) -> bytes:
        """Give the next bytes."""
        part, self._data = self._data[:count], self._data[count:]
        return part


# --- peers of Unix sockets


@pytest.mark.parametrize(
    ("attributes", "is_admitted"),
    [
        ({"peer_uids": (os.geteuid(),)}, True),
        ({"peer_gids": (os.getegid(),)}, True),
        ({"peer_uids": (os.geteuid() + 1,), "peer_gids": (os.getegid() + 1,)}, False),
        ({}, False),
    ],
)
def test_peers(tmp_path: Path, attributes: dict[str, Any], is_admitted: bool) -> None:
    """The kernel says who has connected, and only the listed users and groups come in."""

    class Local(prefork.PeerCredentialsMixIn, socketserver.UnixStreamServer):
        pass

    path = tmp_path / "socket"
    with Local(str(path), Hello) as server:
        vars(server).update(attributes)
        with one_request(server) as client:
            wanted = f"hello uid={os.geteuid()}".encode() if is_admitted else b""
            assert client.recv(100) == wanted
        assert bool(refusals(server)) is not is_admitted
    path.unlink()


def test_peer_of_the_internet_has_no_account() -> None:
    """Over TCP nobody is any user of this machine."""

    class Wrong(prefork.PeerCredentialsMixIn, socketserver.TCPServer):
        peer_uids = (os.geteuid(),)

    with Wrong(("127.0.0.1", 0), Hello) as server:
        with one_request(server) as client:
            assert client.recv(10) == b""
        assert refusals(server) == {Rejection.AUTHENTICATION: 1}


# --- failures


def test_bound_on_failures_of_a_server() -> None:
    """A client that has failed as often as it may is refused without being asked."""
    with Keyed(("127.0.0.1", 0), Hello) as server:
        server.max_auth_failures = 2
        for _ in range(2):
            with one_request(server) as client:
                assert log_in(client, b"wrong", "sha256") == b"failure"
        with one_request(server) as client:
            assert client.recv(10) == b""
        assert refusals(server) == {Rejection.AUTHENTICATION: 2, Rejection.THROTTLED: 1}


def test_failures_are_forgotten_after_a_minute() -> None:
    """Each failure counts for a minute, and for its own client."""
    failures = Failures(words(), 2, b"salt")
    for now in (10.0, 40.0):
        assert not failures.is_too_many("a", now)
        failures.note("a", now)
    assert failures.is_too_many("a", 69.9)
    assert not failures.is_too_many("b", 69.9)
    assert not failures.is_too_many("a", 70.0)
    failures.note("a", 71.0)
    assert failures.is_too_many("a", 72.0)


def test_workers_count_together() -> None:
    """Failures in two workers are those of one client: the bound is the pool's."""
    memory = words()
    one, other = (Failures(memory, 2, b"salt") for _ in range(2))
    one.note("a", 100.0)
    other.note("a", 100.5)  # by a clock that was read a little later
    assert one.is_too_many("a", 100.4)
    assert other.is_too_many("a", 101.0)


def test_strangers_win_no_guesses() -> None:
    """However many other clients fail, none of them makes the server forget a failure, and few suffer with them."""
    failures = Failures(words(), 2, b"salt")
    for _ in range(2):
        failures.note("a", 100.0)
    for number in range(2000):
        failures.note(number, 101.0)
    assert failures.is_too_many("a", 150.0)
    innocent = sum(failures.is_too_many(f"client {number}", 150.0) for number in range(1000))
    assert innocent < 10


def test_rows_are_independent() -> None:
    """As many strangers are refused as there are pairs of full cells, which is one of 700, and no more."""
    cells, failing = 2621, 100  # a tenth of what there are for 1,000 clients and ten failures
    failures = Failures(words(2 * cells), 1, b"salt")
    for number in range(failing):
        failures.note(f"192.0.2.{number}", 100.0)
    refused = sum(failures.is_too_many(f"198.51.100.{number}", 101.0) for number in range(20_000))
    assert refused < 20_000 / 700 * 3


def test_failures_from_the_future_count_as_none() -> None:
    """Whatever a worker writes over the memory, the next failures count again."""
    memory = words(4)
    failures = Failures(memory, 2, b"salt")
    for value in (2**63 - 1, -(2**63), -1):
        memory[:] = memoryview(array("q", [value] * 4))
        assert not failures.is_too_many("a", 100.0)
        for _ in range(2):
            failures.note("a", 100.0)
        assert failures.is_too_many("a", 101.0)
    many = Failures(memory, 10, b"salt")  # more than there is room for
    assert not many.is_too_many("a", 500.0)


def words(count: int = 40_000) -> memoryview:
    """Return memory for failures."""
    return memoryview(bytearray(8 * count)).cast("q")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("192.0.2.7", 1), ("192.0.2.7", 2), True),
        (("192.0.2.7", 1), ("192.0.2.8", 1), False),
        (("192.0.2.7", 1), ("::ffff:192.0.2.7", 1, 0, 0), True),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::ffff", 1, 0, 0), True),
        (("2001:db8::1", 1, 0, 0), ("2001:db8:0:1::1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 0), ("fe80::1", 1, 0, 0), True),
        (("host", 1), ("host", 1), True),
    ],
)
def test_what_counts_as_one_client(one: Any, other: Any, same: bool) -> None:
    """A port, another form of the address, or another one of the same network makes no new client."""
    assert (client_key(one, None) == client_key(other, None)) is same
    assert client_key("", 5) != client_key("", 6)
