"""PROXY headers and address rules before the handlers of plain servers."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.edge.edge import edge_of
from prefork.workers.states import Rejection
from tests.unit.test_proxy import IPV4, LINE, MALFORMED, TLVS, binary

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = ("127.0.0.1", 0)
CLIENT = ("192.0.2.7", 4711)


class Answer(socketserver.StreamRequestHandler):
    """Notes its client and answers with what it read."""

    def handle(self) -> None:
        """Serve one line."""
        self.server.handled.append(self.client_address)  # type: ignore[attr-defined]
        self.wfile.write(b"got " + self.rfile.readline())


class Behind(prefork.ProxyProtocolMixIn, prefork.AccessMixIn, socketserver.TCPServer):
    """A server behind a proxy on this machine."""

    proxy_from = "127.0.0.1"
    deny = "203.0.113.0/24"
    edge_timeout = 2.0

    def __init__(self, *given: Any) -> None:
        self.handled: list[Any] = []
        self.verified: list[Any] = []
        super().__init__(*given)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Note the client, and accept all but one."""
        self.verified.append(client_address)
        return bool(client_address != ("192.0.2.66", 1))


def handled_with(server: Any, *parts: bytes, wait: bool = True) -> bytes:
    """Send these bytes in packets of their own and return the answer of one ``handle_request()``."""
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    family = server.address_family
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect(server.server_address)
        if family == socket.AF_INET:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = b""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                client.sendall(part)
            if not wait:
                with contextlib.suppress(OSError):  # refused already
                    client.shutdown(socket.SHUT_WR)
            while block := client.recv(1000):
                answer += block
    thread.join(10)
    assert not thread.is_alive()
    return answer


def refusals(server: Any) -> dict[Rejection, int]:
    """Return what the edge has refused."""
    edge = edge_of(server)
    assert edge is not None
    return dict(edge.refusals.counts)


@pytest.fixture
def server() -> Iterator[Behind]:
    """Give a server behind a proxy."""
    with Behind(LOOPBACK, Answer) as made:
        yield made


@pytest.mark.parametrize("header", [LINE, binary(IPV4, tlvs=TLVS)], ids=["v1", "v2"])
@pytest.mark.parametrize("pieces", [1, 2, 1000])
def test_server_sees_the_client(server: Behind, header: bytes, pieces: int) -> None:
    """Handler and ``verify_request()`` see the client of the header, in however many pieces it comes."""
    whole = header + b"hello\n"
    size = -(-len(whole) // pieces)
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]

    assert handled_with(server, *parts) == b"got hello\n"

    (address,) = server.handled
    assert address == CLIENT
    assert address.peer[0] == "127.0.0.1"
    assert address.proxy.destination == ("198.51.100.1", 443)
    assert address.proxy.tlvs == (((1, b"h2"), (5, b"")) if header[:1] == b"\r" else ())
    assert server.verified == [CLIENT]


def test_exception_of_verify_request_is_the_programs(caplog: pytest.LogCaptureFixture) -> None:
    """An OSError of ``verify_request()`` goes to ``handle_error()``, as it does without an edge."""
    lost = ConnectionResetError("by a database")
    caught: list[Any] = []

    class Failing(Behind):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            raise lost

        def handle_error(self, request: Any, client_address: Any) -> None:
            caught.append((sys.exception(), client_address))

    with Failing(LOOPBACK, Answer) as server:
        assert handled_with(server, LINE + b"hello\n") == b""
        assert (caught, server.handled) == ([(lost, CLIENT)], [])
    assert "refused a client" not in caplog.text


def test_second_header_is_data(server: Behind) -> None:
    """Only the proxy's own header counts: what a client sends behind it reaches the handler as it is."""
    second = b"PROXY TCP4 203.0.113.1 198.51.100.1 1 2\r\n"

    assert handled_with(server, LINE + second) == b"got " + second
    assert server.handled == [CLIENT]


@pytest.mark.parametrize("header", MALFORMED)
def test_malformed_headers_cost_their_connection(server: Behind, header: bytes) -> None:
    """A peer that has to send a header and sends another thing is refused, and no handler runs."""
    assert handled_with(server, header, wait=False) == b""
    assert server.handled == server.verified == []
    assert refusals(server) == {Rejection.PROXY: 1}


def test_missing_header(server: Behind) -> None:
    """A peer that closes before the end of its header has gone, and one that stalls has a deadline."""
    assert handled_with(server, LINE[:-1], wait=False) == b""
    assert refusals(server) == {Rejection.GONE: 1}
    server.edge_timeout = 0.1
    assert handled_with(server, LINE[:-1]) == b""
    assert refusals(server) == {Rejection.TIMEOUT: 1}


@pytest.mark.parametrize("sent", [b"", b"PROXY TCP4 "])
def test_silent_proxy_costs_edge_timeout(sent: bytes) -> None:
    """A proxy that stops within its header costs edge_timeout, although the connection has a longer timeout."""

    class Patient(Behind):
        edge_timeout = 0.3

        def get_request(self) -> Any:
            request, address = super().get_request()
            request.settimeout(5)
            return request, address

    with (
        Patient(LOOPBACK, Answer) as server,
        socket.create_connection(server.server_address) as peer,
    ):
        peer.sendall(sent)
        began = time.monotonic()
        server.handle_request()
        assert time.monotonic() - began < 3
        assert refusals(server) == {Rejection.TIMEOUT: 1}


def test_rules_go_by_the_client(server: Behind) -> None:
    """Rules are about the client and not about the proxy; a refused one never reaches ``verify_request()``."""
    assert handled_with(server, LINE.replace(b"192.0.2.7", b"203.0.113.9") + b"x\n") == b""
    assert refusals(server) == {Rejection.ADDRESS: 1}
    assert server.handled == server.verified == []


def test_verify_request_can_refuse_the_client(server: Behind) -> None:
    """What ``verify_request()`` refuses in the edge is refused, with its own reason."""
    assert handled_with(server, b"PROXY TCP4 192.0.2.66 198.51.100.1 1 2\r\nx\n") == b""
    assert refusals(server) == {Rejection.VERIFY: 1}
    assert server.handled == []


def test_health_check_is_served(server: Behind, caplog: pytest.LogCaptureFixture) -> None:
    """LOCAL is the proxy itself: it is served under its own address, and no rule is asked."""
    server.allow = "192.0.2.0/24"
    assert handled_with(server, binary(command=0x20, family=0), b"check\n") == b"got check\n"
    (address,) = server.handled
    assert address == address.peer
    assert address.proxy.is_local
    assert caplog.text == ""


def test_health_check_shows_what_the_handler_lacks() -> None:
    """A handler that another server refuses has failed in a health check, too; a proxy that leaves is no error."""
    errors: list[Exception] = [ConnectionResetError(), ConnectionRefusedError("by a database")]
    refused = errors[1]
    caught: list[Any] = []

    class Failing(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            raise errors.pop(0)

    with Behind(LOOPBACK, Failing) as server:
        server.handle_error = lambda *_: caught.append(sys.exception())  # type: ignore[method-assign]
        for _ in range(2):
            assert handled_with(server, binary(command=0x20, family=0), b"check\n") == b""
    assert caught == [refused]


def test_unknown_client_is_the_peer(server: Behind) -> None:
    """A proxy that does not know its client hands on the address of the connection, and rules hold for that."""
    assert handled_with(server, b"PROXY UNKNOWN\r\nx\n") == b"got x\n"
    assert server.handled[0] == server.handled[0].peer
    server.allow = "192.0.2.0/24"
    assert handled_with(server, b"PROXY UNKNOWN\r\nx\n") == b""
    assert refusals(server) == {Rejection.ADDRESS: 1}


def test_header_of_anybody_else_is_data(server: Behind) -> None:
    """A peer that is no proxy cannot say who it is: its header is what the handler reads."""
    server.proxy_from = "10.0.0.0/8"
    assert handled_with(server, LINE) == b"got " + LINE
    (address,) = server.handled
    assert address.proxy is None
    assert address == address.peer
    assert server.verified == server.handled


def test_unix_peers(tmp_path: Path) -> None:
    """All peers of a Unix socket can be proxies, and rules about accounts hold where they are not."""

    class Local(prefork.AccessMixIn, socketserver.UnixStreamServer):
        handled: list[Any] = []  # noqa: RUF012 - one server

    path = str(tmp_path / "socket")
    with Local(path, Answer, bind_and_activate=False) as server:
        server.proxy_from = "unix"
        server.deny = "203.0.113.0/24"
        server.server_bind()
        server.server_activate()
        assert handled_with(server, LINE + b"hello\n") == b"got hello\n"
        assert server.handled == [CLIENT]
        assert server.handled[0].peer == ""
        server.proxy_from = None
        server.deny = f"unix:uid={Path(path).stat().st_uid}"
        assert handled_with(server, b"hello\n") == b""
        assert refusals(server) == {Rejection.ADDRESS: 1}
        server.deny = "unix:uid=12345"
        assert handled_with(server, b"hello\n") == b"got hello\n"
    Path(path).unlink()


class Datagrams(prefork.ProxyProtocolMixIn, socketserver.UDPServer):
    """A datagram server behind a proxy."""

    proxy_from = "127.0.0.1"
    deny = "203.0.113.0/24"
    handled: list[Any] = []  # noqa: RUF012 - one server


class EchoDatagram(socketserver.DatagramRequestHandler):
    """Answers a datagram."""

    def handle(self) -> None:
        """Serve one."""
        self.server.handled.append(self.client_address)  # type: ignore[attr-defined]
        self.wfile.write(b"got " + self.packet)


def test_datagrams() -> None:
    """A datagram loses its header, shows the client of it, and its answer goes to the proxy."""
    with (
        Datagrams(LOOPBACK, EchoDatagram) as server,
        socket.socket(type=socket.SOCK_DGRAM) as proxy,
    ):
        proxy.settimeout(5)
        proxy.connect(server.server_address)
        proxy.send(binary(IPV4, family=0x12) + b"hello")
        server.handle_request()
        assert proxy.recv(100) == b"got hello"
        assert server.handled == [CLIENT]
        for datagram in (
            b"hello",
            LINE + b"hello",
            binary(IPV4, family=0x11) + b"hello",
            binary(IPV4.replace(b"\xc0\0\2", b"\xcb\0\x71"), family=0x12),
        ):
            proxy.send(datagram)
            server.handle_request()
        assert refusals(server) == {Rejection.PROXY: 3, Rejection.ADDRESS: 1}
        assert len(server.handled) == 1
        server.handled.clear()


def test_useless_settings_are_refused() -> None:
    """Rules that never match, and mix-ins without settings, are refused before a request is served."""

    class Local(prefork.AccessMixIn, socketserver.UnixStreamServer):
        allow = "10.0.0.0/8"

    with pytest.raises(prefork.SettingsError, match=r"attribute Local\.allow\).*never matches"):
        Local("/nowhere/at/all", Answer)

    class Wrong(Behind):
        proxy_from = "10.0.0.1/8"

    with pytest.raises(prefork.SettingsError, match="write the network"):
        Wrong(LOOPBACK, Answer)

    class Open(prefork.AccessMixIn, socketserver.TCPServer):
        pass

    with Open(LOOPBACK, Answer) as server:
        with pytest.raises(prefork.SettingsError, match="AccessMixIn needs allow or deny"):
            server.handle_request()
        server.allow = "fd00::/8"
        with pytest.raises(prefork.SettingsError, match="come from IPv4"):
            server.handle_request()
