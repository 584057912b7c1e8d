"""One connection of a WSGI server: what is there is taken at once, and only a wait has a timeout."""

from __future__ import annotations

import io
import socket
import tempfile
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from prefork.wsgi.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = bytes(range(256)) * 8192


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the server's end of a connection, and the client's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)
        yield ours, theirs


def test_what_need_not_wait_has_no_timeout(pair: tuple[socket.socket, socket.socket]) -> None:
    """Bytes that are there are received, and an answer that fits is sent, on a socket without a timeout."""
    ours, theirs = pair
    ours.settimeout(7)
    wire = Wire(ours, 3)
    assert ours.gettimeout() is None
    assert wire.try_to_receive(10) is None
    theirs.sendall(b"ab")
    assert wire.try_to_receive(1) == b"a"
    assert wire.receive(10) == b"b"
    wire.send(b"c")
    assert theirs.recv(10) == b"c"
    assert ours.gettimeout() is None
    theirs.close()
    assert wire.receive(10) == b""


@pytest.mark.parametrize(("own", "given"), [(None, 0.02), (0.02, 60.0)])
def test_wait_has_the_timeout(
    pair: tuple[socket.socket, socket.socket], own: float | None, given: float
) -> None:
    """A client that is silent, or takes nothing, is a TimeoutError, after which the socket shows its timeout."""
    ours, _ = pair
    ours.settimeout(own)
    wire = Wire(ours, given)
    with pytest.raises(TimeoutError):
        wire.receive(1)
    assert ours.gettimeout() == 0.02
    ours.settimeout(None)
    with pytest.raises(TimeoutError):
        wire.send(LARGE)
    assert ours.gettimeout() == 0.02
    with pytest.raises(TimeoutError):
        wire.receive_until(1, monotonic() - 1)


@pytest.mark.parametrize("of_file", [False, True])
def test_client_that_takes_its_time_gets_everything(
    pair: tuple[socket.socket, socket.socket], *, of_file: bool
) -> None:
    """An answer that is larger than the kernel's room arrives whole, and the next wait begins anew."""
    ours, theirs = pair
    wire = Wire(ours, 10)
    received = io.BytesIO()

    def take() -> None:
        while received.tell() < len(LARGE):
            received.write(theirs.recv(65536))

    thread = threading.Thread(target=take)
    thread.start()
    if of_file:
        with tempfile.TemporaryFile() as file:
            file.write(LARGE)
            assert wire.send_file(file, 0, len(LARGE)) == len(LARGE)
    else:
        wire.send(LARGE)
    thread.join()
    assert received.getvalue() == LARGE
    assert ours.gettimeout() is None


def test_end_of_a_connection_goes_with_its_last_answer() -> None:
    """The kernel keeps a last answer until the connection is shut down, and sends both in one packet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with client, ours:
        Wire(ours, None).send(b"last", is_last=True)
        with pytest.raises(BlockingIOError):
            client.recv(1, socket.MSG_DONTWAIT)
        ours.shutdown(socket.SHUT_WR)
        client.settimeout(10)
        assert client.recv(10) == b"last"
        assert client.recv(10) == b""


def test_encrypted_socket_keeps_its_timeout() -> None:
    """A socket that knows no flags has the timeout all the time."""
    import ssl

    class Encrypted(ssl.SSLSocket):
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def gettimeout(self) -> float | None:
            return None

        def settimeout(self, seconds: float | None) -> None:
            self.calls.append(seconds)

        def recv(self, most: int = 1, flags: int = 0) -> bytes:
            self.calls.append((most, flags))
            return b"a"

        def sendall(self, data: Any, flags: int = 0) -> None:
            self.calls.append((data, flags))

    sock = Encrypted()
    wire = Wire(sock, 3)
    assert wire.try_to_receive(5) is None
    assert wire.receive(5) == b"a"
    wire.send(b"b")
    assert sock.calls == [3, (5, 0), (b"b", 0)]
