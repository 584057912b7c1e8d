"""Attempts to get around the edge: each of them was tried, and each of them fails."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.edge.access import matcher, parse_rule
from prefork.edge.access_step import credentials_of_client
from prefork.edge.edge import edge_of
from prefork.edge.passage import Passage
from prefork.edge.proxy_step import stream_step
from prefork.workers.states import Rejection
from tests.support.certificates import Authority
from tests.support.one_request import one_request
from tests.unit.test_proxy import IPV4, UNIX, binary

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK = ("127.0.0.1", 0)


class Note(socketserver.StreamRequestHandler):
    """Notes its client, and echoes a line."""

    def handle(self) -> None:
        """Serve one line."""
        self.server.handled.append(self.client_address)  # type: ignore[attr-defined]
        self.wfile.write(self.rfile.readline())


class Server(prefork.AccessMixIn, socketserver.TCPServer):
    """A server with rules; the attributes of the object make the rest of its edge."""

    edge_timeout = 2.0
    deny = "203.0.113.0/24"

    def __init__(self, **attributes: Any) -> None:
        self.handled: list[Any] = []
        vars(self).update(attributes)
        super().__init__(LOOPBACK, Note)


def attempt(server: Any, said: bytes) -> bytes:
    """Say something, and return what comes back."""
    answer = b""
    with one_request(server) as client, contextlib.suppress(ConnectionError):
        client.sendall(said)
        while part := client.recv(100):
            answer += part
    return answer


def refusals(server: Any) -> dict[Rejection, int]:
    """Return what the edge has refused."""
    edge = edge_of(server)
    assert edge is not None
    return dict(edge.refusals.counts)


# --- addresses


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP6 ::ffff:203.0.113.9 ::1 1 2\r\n",
        b"PROXY TCP6 ::FFFF:cb00:7109 ::1 1 2\r\n",
        b"PROXY TCP6 0:0:0:0:0:ffff:203.0.113.9 ::1 1 2\r\n",
        binary(
            bytes(10) + b"\xff\xff" + socket.inet_aton("203.0.113.9") + bytes(16) + bytes(4),
            family=0x21,
        ),
    ],
)
def test_denied_client_in_another_form(header: bytes) -> None:
    """A client that is denied does not come in by an IPv6 form of its address."""
    with Server(proxy_from="127.0.0.1") as server:
        assert attempt(server, header + b"hello\n") == b""
        assert refusals(server) == {Rejection.ADDRESS: 1}


def test_stranger_claims_to_be_a_health_check() -> None:
    """LOCAL skips the rules for proxies only: from anybody else it is data, and the rules hold."""
    local = binary(command=0x20, family=0)
    with Server(proxy_from="10.0.0.0/8", deny="127.0.0.1") as server:
        assert attempt(server, local + b"hello\n") == b""
        assert refusals(server) == {Rejection.ADDRESS: 1}


HEADERS_WITHOUT_AN_ACCOUNT = [
    binary(UNIX, family=0x31),
    binary(bytes(216), family=0x31),  # a client without a name, as most are
    binary(family=0),
    binary(IPV4),
    b"PROXY UNKNOWN\r\n",
]
"""What a proxy says of clients whose account it does not say."""


def test_client_does_not_get_the_account_of_the_proxy(tmp_path: Path) -> None:
    """A client that a proxy on a Unix socket speaks for has not the proxy's own user; the proxy itself has it."""

    class Local(prefork.PeerCredentialsMixIn, socketserver.UnixStreamServer):
        proxy_from = "unix"
        peer_uids = (os.geteuid(),)
        handled: list[Any] = []  # noqa: RUF012 - one server

    path = tmp_path / "socket"
    with Local(str(path), Note) as server:
        for header in HEADERS_WITHOUT_AN_ACCOUNT:
            assert attempt(server, header + b"hello\n") == b""
        assert refusals(server) == {Rejection.AUTHENTICATION: 5}
        assert attempt(server, binary(command=0x20, family=0) + b"check\n") == b"check\n"
    path.unlink()


def test_rule_about_an_account_that_nobody_knows(tmp_path: Path) -> None:
    """Behind a proxy, and for datagrams, a rule about accounts is refused: ``deny`` would let everybody in."""

    class Datagrams(prefork.AccessMixIn, socketserver.UnixDatagramServer):
        deny = f"unix:uid={os.geteuid()}"

    class Behind(prefork.AccessMixIn, socketserver.UnixStreamServer):
        proxy_from = "unix"
        deny = f"unix:uid={os.geteuid()}"

    for server in (Datagrams, Behind):
        with pytest.raises(prefork.SettingsError, match="is not known"):
            server(str(tmp_path / "socket"), Note)
    for header in HEADERS_WITHOUT_AN_ACCOUNT:
        assert _account_behind(header) is None


def _account_behind(header: bytes) -> Any:
    """Return the account that rules go by, behind a proxy on a Unix socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(header)
        passage = Passage(ours, "", 5.0)
        stream_step(matcher([parse_rule("unix")]))(passage)
        return credentials_of_client(passage)


@pytest.mark.processes
def test_account_is_that_of_the_connect(tmp_path: Path) -> None:
    """A process that gives up its user after the connect counts as the one that has connected."""

    class Local(prefork.AccessMixIn, socketserver.UnixStreamServer):
        deny = f"unix:uid={os.geteuid()}"
        handled: list[Any] = []  # noqa: RUF012 - one server

    path = tmp_path / "socket"
    with Local(str(path), Note) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        asked = "import os, socket; os.geteuid() or os.setuid(65534); socket.socket(fileno=0).sendall(b'x\\n')"
        subprocess.run([sys.executable, "-c", asked], stdin=client, check=True)
        server.handle_request()
        assert refusals(server) == {Rejection.ADDRESS: 1}
        assert server.handled == []
    path.unlink()


def test_two_headers() -> None:
    """Of two headers the first one counts, and the second one is data, in both versions."""
    first, second = (
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.8 192.0.2.1 1 2\r\n",
    )
    with Server(proxy_from="127.0.0.1") as server:
        assert attempt(server, first + second) == second
        assert attempt(server, first + binary(IPV4)) == binary(IPV4).partition(b"\n")[0] + b"\n"
        assert server.handled == [("192.0.2.7", 1)] * 2


# --- sessions


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Give an authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


def session_of(
    server: Any, context: ssl.SSLContext, session: Any = None, *, name: str = "localhost"
) -> Any:
    """Make one request, and return its session; raise what the client meets."""
    with (
        one_request(server) as plain,
        context.wrap_socket(plain, server_hostname=name, session=session) as client,
    ):
        client.sendall(b"hello\n")
        if client.recv(100) != b"hello\n":
            raise ConnectionError("no answer")
        return client.session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_of_another_server(
    authority: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """A session does not get a client around a certificate that it has to show elsewhere, or after a reload."""
    certificate = authority.server("localhost")
    context = authority.context()
    context.maximum_version = version
    known = authority.context(authority.client("alice"))
    known.maximum_version = version
    others = Authority(tmp_path)
    with (
        Server(tls_certificate=certificate) as for_all,
        Server(tls_certificate=certificate, tls_client_ca=authority.file) as for_known,
        Server(tls_certificate=certificate, tls_client_ca=others.file) as after_a_reload,
    ):
        without = session_of(for_all, context)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            session_of(for_known, context, without)
        as_alice = session_of(for_known, known)
        assert session_of(for_known, known, as_alice) is not None
        with pytest.raises((ssl.SSLError, ConnectionError)):
            session_of(after_a_reload, known, as_alice)
        assert (len(for_known.handled), after_a_reload.handled) == (2, [])
        assert refusals(for_known) == refusals(after_a_reload) == {Rejection.TLS: 1}


def test_another_name_does_not_change_who_may_come(authority: Authority) -> None:
    """The certificate that a client asks for by name makes no difference to what it has to show itself."""
    certificates = [authority.server("localhost"), authority.server("other.example", file="other")]
    with Server(tls_certificate=certificates, tls_client_ca=authority.file) as server:
        context = authority.context()
        for name in ("localhost", "other.example"):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                session_of(server, context, name=name)
        assert server.handled == []
        assert refusals(server) == {Rejection.TLS: 2}


def test_plain_client_learns_nothing(authority: Authority) -> None:
    """What a client sends in the clear to a port with TLS reaches no handler."""
    with Server(tls_certificate=authority.server("localhost")) as server:
        assert b"hello" not in attempt(server, b"hello\n" * 50)
        assert server.handled == []
