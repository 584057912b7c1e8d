"""Attempts to get around the edge: each of them was tried, and each of them fails."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

import prefork
from prefork.edge import tls
from prefork.edge.access import matcher, parse_rule
from prefork.edge.access_step import credentials_of_client
from prefork.edge.edge import edge_of
from prefork.edge.passage import Passage
from prefork.edge.proxy_step import stream_step
from prefork.edge.setup import prepare
from prefork.workers.parking import Luggage, ParkedSocket
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


def reasons(server: Any) -> list[str]:
    """Return a list to which the edge adds why it refuses a client, in place of what it does otherwise."""
    found: list[str] = []
    edge = edge_of(server)
    assert edge is not None
    edge.refusals.note = lambda _reason, _passage, error: found.append(str(error))  # type: ignore[method-assign]
    return found


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


# --- ways to serve


@pytest.mark.parametrize("bases", [(), (socketserver.ThreadingMixIn,)], ids=["plain", "threads"])
def test_no_way_to_serve_leads_around(bases: tuple[type, ...]) -> None:
    """The rules also hold where a server has no workers, and where it handles one request by hand."""

    class Alone(*bases, prefork.PreForkingTCPServer):  # type: ignore[misc]
        workers = 0
        deny = "127.0.0.1"
        block_on_close = True
        handled: list[Any] = []  # noqa: RUF012 - one server

    with Alone(LOOPBACK, Note) as server:
        assert attempt(server, b"hello\n") == b""
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            with contextlib.suppress(ConnectionError), socket.socket() as client:
                client.settimeout(5)
                client.connect(server.server_address)
                client.sendall(b"hello\n")
                assert client.recv(100) == b""
        finally:
            server.shutdown()
            serving.join(5)
        assert server.handled == []
        assert refusals(server) == {Rejection.ADDRESS: 2}


def test_datagrams_are_authenticated_by_what_they_say() -> None:
    """``authenticate()`` gets a datagram as it is; a mix-in that talks with clients is refused before the bind."""

    class Signed(prefork.AuthenticationMixIn, socketserver.UDPServer):
        handled: list[Any] = []  # noqa: RUF012 - one server

        def authenticate(self, request: Any, client_address: Any) -> str:
            data, _ = request
            if not data.startswith(b"secret "):
                raise prefork.AuthenticationError("not signed")
            return "known"

    class Echo(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            self.server.handled.append(self.client_address.identity)  # type: ignore[attr-defined]

    with Signed(LOOPBACK, Echo) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        for said in (b"hello", b"secret hello"):
            client.sendto(said, server.server_address)
            server.handle_request()
        assert server.handled == ["known"]
        assert refusals(server) == {Rejection.AUTHENTICATION: 1}

    class Talking(prefork.HMACMixIn, socketserver.UDPServer):
        authkey = b"key"

    with pytest.raises(prefork.MisuseError, match="HMACMixIn needs connections"):
        Talking(LOOPBACK, Echo)


# --- parked connections


def resumed(server: Any, address: Any, client: Any) -> bytes:
    """Give a server a connection that was parked with a line in it, and return what comes back."""
    ours, theirs = socket.socketpair()
    request = ParkedSocket(ours.family, ours.type, 0, ours.detach())
    request.luggage = Luggage(address, client=client)
    with theirs:
        theirs.sendall(b"hello\n")
        theirs.shutdown(socket.SHUT_WR)
        server.finish_request(request, address)
        server.shutdown_request(request)
        with contextlib.suppress(ConnectionError):
            return theirs.recv(100)
        return b""


def test_parked_before_the_rules() -> None:
    """What a reload denies is also denied to connections that were parked before; the others are served."""
    with Server() as server:
        prepare(server)
        for address, wanted in (("203.0.113.9", b""), ("192.0.2.7", b"hello\n")):
            assert resumed(server, (address, 1), ((address, 1), None, None)) == wanted
        behind = (("203.0.113.9", 1), None, (1, False, (), None))
        assert resumed(server, ("192.0.2.7", 1), behind) == b"hello\n"
        assert resumed(server, ("203.0.113.9", 1), (("127.0.0.1", 1), None, None)) == b""
        assert refusals(server) == {Rejection.ADDRESS: 2}


def test_parked_by_a_proxy_that_is_none_any_more() -> None:
    """LOCAL skips the rules as long as its peer is a proxy: after a reload without that proxy they hold for it, too."""
    peer = ("203.0.113.9", 1)
    itself = (peer, None, (2, True, (), None))
    for proxies, wanted in (("203.0.113.0/24", b"hello\n"), ("192.0.2.8", b""), (None, b"")):
        with Server(proxy_from=proxies) as server:
            prepare(server)
            assert resumed(server, peer, itself) == wanted


def test_parked_before_there_was_an_edge(authority: Authority) -> None:
    """A connection that no edge has admitted goes through the edge; one in the clear does not get around TLS."""
    with Server(deny="192.0.2.7", proxy_from="192.0.2.8") as server:
        prepare(server)
        assert resumed(server, ("192.0.2.7", 1), None) == b""
        assert resumed(server, ("192.0.2.8", 1), None) == b""
        assert refusals(server) == {Rejection.ADDRESS: 1, Rejection.PROXY: 1}
    with Server(tls_certificate=authority.server("localhost")) as server:
        prepare(server)
        for client in (None, (("192.0.2.7", 1), "alice", None)):
            assert b"hello" not in resumed(server, ("192.0.2.7", 1), client)
        assert refusals(server) == {Rejection.TLS: 2}
        assert server.handled == []


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


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_of_a_certificate_that_has_ended(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion
) -> None:
    """A session does not outlive the certificate that the client has shown when it began."""
    ends = datetime.now(UTC) + timedelta(hours=1)
    context = authority.context(authority.client("carol", not_after=ends))
    context.maximum_version = version
    certificate = authority.server("localhost")
    with Server(tls_certificate=certificate, tls_client_ca=authority.file) as server:
        session = session_of(server, context)
        assert session_of(server, context, session) is not None
        monkeypatch.setattr(tls, "time", lambda: ends.timestamp() + 1)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            session_of(server, context, session)
        assert [one.tls.resumed for one in server.handled] == [False, True]
        assert refusals(server) == {Rejection.TLS: 1}


def test_certificates_that_prove_nothing(authority: Authority, tmp_path: Path) -> None:
    """Nobody comes in with a certificate that has ended, has not begun, is for servers, or was signed by a client."""
    now = datetime.now(UTC)
    other = Authority(tmp_path)
    for_clients = ExtendedKeyUsageOID.CLIENT_AUTH
    shown = {
        "expired": authority.client("late", not_after=now - timedelta(days=1)),
        "not yet valid": authority.client(
            "early", not_before=now + timedelta(days=1), not_after=now + timedelta(days=9)
        ),
        "unsuitable": authority.forged("server", usage=ExtendedKeyUsageOID.SERVER_AUTH),
        "invalid CA|issuer": authority.forged(
            "child", signed_with=authority.client("parent"), usage=for_clients
        ),
        "self-signed|issuer": other.client("alice"),
    }
    attributes = {"tls_certificate": authority.server("localhost"), "tls_client_ca": authority.file}
    with Server(**attributes) as server:
        whys = reasons(server)
        good = authority.context(authority.forged("good", usage=for_clients))
        assert session_of(server, good) is not None
        assert server.handled.pop().identity == "CN=good"
        for words, path in shown.items():
            context = authority.context(path)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                session_of(server, context)
            assert re.search(words, whys[-1]), (words, whys)
        assert server.handled == []
        assert len(whys) == len(shown)


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
