"""TLS before the handlers of plain servers: handshake, certificates, the end, and settings that are refused."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import ssl
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

import prefork
from prefork.edge.edge import edge_of
from prefork.edge.setup import prepare
from prefork.edge.tls import TLSFiles, TLSSettingError, load
from prefork.edge.watch import FileWatch, stamps_of
from prefork.workers.states import Rejection
from tests.support.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOPBACK = ("127.0.0.1", 0)


class Answer(socketserver.StreamRequestHandler):
    """Notes its client and answers a line."""

    def handle(self) -> None:
        """Serve one line."""
        self.server.handled.append(self.client_address)  # type: ignore[attr-defined]
        line = self.rfile.readline()
        if line == b"fail\n":
            raise ValueError
        self.wfile.write(b"got " + line)


class Secure(prefork.TLSMixIn, socketserver.TCPServer):
    """A server with TLS."""

    edge_timeout = 5.0

    def __init__(self, *given: Any, **attributes: Any) -> None:
        self.handled: list[Any] = []
        self.errors: list[Any] = []
        vars(self).update(attributes)
        super().__init__(*given)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note the error."""
        self.errors.append(client_address)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Give an authority; making keys takes a while."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> str:
    """Give the certificate of a server."""
    return authority.server("localhost", "127.0.0.1")


@pytest.fixture
def secure(certificate: str) -> Iterator[Callable[..., Secure]]:
    """Make servers with TLS."""
    with contextlib.ExitStack() as ends:

        def make(**attributes: Any) -> Secure:
            given = {"tls_certificate": certificate, **attributes}
            return ends.enter_context(Secure(LOOPBACK, Answer, **given))

        yield make


@contextlib.contextmanager
def one_request(server: Any) -> Iterator[socket.socket]:
    """Handle one request in a thread; the block is the client."""
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    try:
        with socket.create_connection(server.server_address, timeout=5) as client:
            yield client
    finally:
        thread.join(10)
    assert not thread.is_alive()


def asked(
    server: Any, context: ssl.SSLContext, line: bytes = b"hello\n", name: str = "localhost"
) -> Any:
    """Make one request by TLS, and return the answer and the client's socket."""
    with (
        one_request(server) as client,
        context.wrap_socket(client, server_hostname=name, suppress_ragged_eofs=False) as secured,
    ):
        secured.sendall(line)
        answer = b""
        while part := secured.recv(100):
            answer += part
        return answer, secured


def name_of(address: Any) -> str:
    """Return the common name in an identity; trustme adds a unit of its own to each subject."""
    match = re.fullmatch(r"CN=(\w+),OU=[^,]+,O=Ex\\, Inc\.", address.identity)
    assert match is not None, address.identity
    return match[1]


def refusals(server: Any) -> dict[Rejection, int]:
    """Return what the edge has refused."""
    edge = edge_of(server)
    assert edge is not None
    return dict(edge.refusals.counts)


def test_encrypts(secure: Callable[..., Secure], authority: Authority) -> None:
    """The handler reads and writes through TLS, and knows version, cipher and the name that was asked for."""
    server = secure()
    answer, _ = asked(server, authority.trusting)
    assert answer == b"got hello\n"  # recv() would have raised without a close_notify
    (address,) = server.handled
    assert (address.tls.version, address.tls.server_name) == ("TLSv1.3", "localhost")
    assert address.tls.cipher.startswith("TLS_")
    assert address.identity is address.tls.certificate is None


def test_lowest_version_is_1_2(secure: Callable[..., Secure], authority: Authority) -> None:
    """TLS 1.2 is accepted, with forward secrecy and authenticated encryption only."""
    server = secure()
    context = authority.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    answer, _ = asked(server, context)
    assert answer == b"got hello\n"
    assert server.handled[0].tls.version == "TLSv1.2"
    assert "GCM" in server.handled[0].tls.cipher
    loaded = load(TLSFiles((str(server.tls_certificate),)))
    assert loaded.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert loaded.context.options & ssl.OP_NO_RENEGOTIATION
    names = {one["name"] for one in loaded.context.get_ciphers()}
    assert not [
        name
        for name in names
        if "CBC" in name
        or name.endswith("SHA")
        or ("DHE" not in name and not name.startswith("TLS_"))
    ]


def test_failed_handler_sends_no_close_notify(
    secure: Callable[..., Secure], authority: Authority
) -> None:
    """After an exception a client can see that the answer is not whole; the error has the client's name."""
    server = secure()
    with pytest.raises((ssl.SSLEOFError, ConnectionError)):
        asked(server, authority.trusting, b"fail\n")
    assert len(server.errors) == 1
    assert server.errors[0].tls.version == "TLSv1.3"


def test_slow_reader_gets_the_close_notify(authority: Authority, certificate: str) -> None:
    """A client that has not read everything yet gets the rest, and then the end of TLS."""
    size = 3_000_000

    class Flood(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"x" * size)

    with (
        Secure(LOOPBACK, Flood, tls_certificate=certificate) as server,
        one_request(server) as client,
        authority.trusting.wrap_socket(
            client, server_hostname="localhost", suppress_ragged_eofs=False
        ) as secured,
    ):
        got = 0
        while part := secured.recv(65536):
            got += len(part)
    assert got == size


def test_garbage_and_silence(
    secure: Callable[..., Secure], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is no handshake costs one connection, one count and no traceback."""
    server = secure(edge_timeout=0.2)
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello"):
        with one_request(server) as client:
            client.sendall(said)
            with contextlib.suppress(ConnectionError):
                while client.recv(100):
                    pass
    with one_request(server) as client:
        assert client.recv(10) == b""  # silent
    with one_request(server) as client:
        client.shutdown(socket.SHUT_WR)
        while client.recv(10):
            pass  # an alert
    assert refusals(server) == {Rejection.TLS: 2, Rejection.TIMEOUT: 1, Rejection.GONE: 1}
    assert server.handled == server.errors == []
    assert "reason=tls" in caplog.text
    assert "Traceback" not in caplog.text


def first_message(name: str) -> bytes:
    """Return the first message of a client, which asks for this name."""
    sent = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (first_message("a" * 9).replace(b"a" * 9, b"\xff" * 9), Rejection.TLS),
        (first_message("localhost")[:40], Rejection.GONE),
        (b"\x16\x03\x01\xff\xff" + bytes(70_000), Rejection.TLS),
        (b"\x80\x2e\x01\x00\x02" + bytes(64), Rejection.TLS),
        (b"", Rejection.GONE),
    ],
    ids=["a name that is no text", "cut off", "a long record", "SSL 2", "nothing"],
)
def test_malformed_message_writes_no_traceback(
    secure: Callable[..., Secure],
    capfd: pytest.CaptureFixture[str],
    sent: bytes,
    reason: Rejection,
) -> None:
    """A malformed first message is refused for its reason, and nothing of it reaches standard error."""
    server = secure()
    # The server may have reset the connection already: shutdown() raises a plain OSError then.
    with one_request(server) as client, contextlib.suppress(OSError):
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        while client.recv(1000):
            pass
    assert refusals(server) == {reason: 1}
    assert capfd.readouterr().err == ""
    assert server.errors == []


HELLO = first_message("localhost")


@given(st.lists(st.tuples(st.integers(0, len(HELLO) - 1), st.binary(max_size=3)), min_size=1))
@settings(max_examples=40)
def test_damaged_first_message(server_of_damage: Secure, damage: list[tuple[int, bytes]]) -> None:
    """Whatever bytes of the first message are changed, cut out or added, the client costs one refusal and no error."""
    sent = bytearray(HELLO)
    for place, other in damage:
        sent[place : place + 1] = other
    before = sum(refusals(server_of_damage).values())
    _say(server_of_damage, bytes(sent))
    assert sum(refusals(server_of_damage).values()) == before + 1
    assert server_of_damage.handled == server_of_damage.errors == []


def test_records_out_of_order(secure: Callable[..., Secure]) -> None:
    """What comes in place of the second message of a client ends the connection, and reaches no handler."""
    server = secure()
    record = b"%s\x03\x03%s%s"
    followers = {
        "a flood of changed ciphers": record % (b"\x14", b"\0\1", b"\1") * 100,
        "a first message again": HELLO,
        "data": record % (b"\x17", b"\0\x20", bytes(32)),
        "empty data": record % (b"\x17", b"\0\0", b"") * 100,
        "a heartbeat": record % (b"\x18", b"\0\3", b"\1\x40\0"),
        "a type that is none": record % (b"\x63", b"\0\1", b"\0"),
        "a fatal alert": record % (b"\x15", b"\0\2", b"\2\x28"),
        "a flood of warnings": record % (b"\x15", b"\0\2", b"\1\x5a") * 100,
        "an end": record % (b"\x15", b"\0\2", b"\1\0"),
        "text": b"GET / HTTP/1.1\r\n\r\n",
    }
    for number, (what, follower) in enumerate(followers.items(), 1):
        _say(server, HELLO + follower)
        assert sum(refusals(server).values()) == number, what
        assert server.handled == server.errors == [], what


def _say(server: Any, sent: bytes) -> None:
    with one_request(server) as client, contextlib.suppress(ConnectionError):
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        while client.recv(10_000):
            pass


@pytest.fixture(scope="module")
def server_of_damage(certificate: str) -> Iterator[Secure]:
    """Give a server for many clients, because hypothesis wants one for all its examples."""
    with Secure(LOOPBACK, Answer, tls_certificate=certificate) as server:
        prepare(server)
        yield server


def test_refused_client_reads_the_alert(
    secure: Callable[..., Secure], authority: Authority
) -> None:
    """A client without a certificate that has sent its request already reads why it is refused."""
    server = secure(tls_client_ca=authority.file)
    with (
        one_request(server) as client,
        authority.trusting.wrap_socket(client, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"x" * 10_000)
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            secured.recv(1)


def test_silent_client_costs_edge_timeout(secure: Callable[..., Secure]) -> None:
    """A client that says nothing keeps the server for edge_timeout, and no longer."""
    server = secure(edge_timeout=0.2)
    with socket.create_connection(server.server_address):
        began = time.monotonic()
        server.handle_request()
        assert 0.19 < time.monotonic() - began < 1.0
    assert refusals(server) == {Rejection.TIMEOUT: 1}


def test_trickling_client_has_one_deadline(secure: Callable[..., Secure]) -> None:
    """A client that sends its first message byte by byte is cut off at the same time as a silent one."""
    server = secure(edge_timeout=0.3)
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500
    sent = 0
    with one_request(server) as client:
        client.settimeout(0.02)
        answer: bytes | None = None
        with contextlib.suppress(ConnectionError):
            for sent in range(len(hello)):
                client.sendall(hello[sent : sent + 1])
                with contextlib.suppress(TimeoutError):
                    answer = client.recv(1)
                    break
    assert sent < 100
    assert not answer
    assert refusals(server) == {Rejection.TIMEOUT: 1}


def test_client_certificates(
    secure: Callable[..., Secure], authority: Authority, tmp_path: Path
) -> None:
    """The subject of a client's certificate is its identity; without one of the authority it is refused."""
    server = secure(tls_client_ca=authority.file)
    for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
        context = authority.context(authority.client("alice"))
        context.maximum_version = version
        answer, _ = asked(server, context)
        assert answer == b"got hello\n"
    assert [name_of(one) for one in server.handled] == ["alice"] * 2
    assert server.handled[0].tls.certificate["issuer"]
    stranger = Authority(tmp_path)
    for context in (authority.trusting, authority.context(stranger.client("mallory"))):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            asked(server, context)
    assert refusals(server) == {Rejection.TLS: 2}
    assert len(server.handled) == 2


def test_intermediate_authority_alone(
    secure: Callable[..., Secure], authority: Authority, tmp_path: Path
) -> None:
    """With an intermediate authority as ``tls_client_ca``, its clients are admitted, and others of the root are not."""
    below = authority.intermediate(tmp_path)
    server = secure(tls_client_ca=below.file)
    answer, _ = asked(server, authority.context(below.client("alice")))
    assert answer == b"got hello\n"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asked(server, authority.context(authority.client("bob")))
    assert [name_of(one) for one in server.handled] == ["alice"]
    assert refusals(server) == {Rejection.TLS: 1}


def test_client_certificate_without_a_readable_name(
    secure: Callable[..., Secure], authority: Authority
) -> None:
    """A client whose certificate has a name that is no UTF-8 is refused, and is no error of the program."""
    server = secure(tls_client_ca=authority.file)
    names = bytes.fromhex("3006 8204 fffe c35a")  # one DNS name of four bytes
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    context = authority.context(authority.forged("odd", usage=usage, names=names))
    with contextlib.suppress(OSError):
        asked(server, context)
    assert (refusals(server), server.errors) == ({Rejection.TLS: 1}, [])


def test_certificate_is_chosen_by_name(authority: Authority, secure: Callable[..., Secure]) -> None:
    """Each name gets its certificate, a star included; an unknown name gets the first."""
    certificates = [
        authority.server("localhost"),
        authority.server("one.example", file="one"),
        authority.server("*.two.example", file="two"),
    ]
    server = secure(tls_certificate=certificates, tls_alpn="a b")
    context = authority.context()
    context.set_alpn_protocols(["b", "c"])
    for name in ("localhost", "one.example", "x.two.example", "ONE.example"):
        answer, _ = asked(server, context, name=name)  # the client checks the name
        assert answer == b"got hello\n"
    assert {one.tls.alpn for one in server.handled} == {"b"}
    context.check_hostname = False
    asked(server, context, name="unknown.example")
    assert server.handled[-1].tls.server_name == "unknown.example"


def test_certificates_that_share_a_name(
    authority: Authority, secure: Callable[..., Secure]
) -> None:
    """Of two certificates that have a name in common, each is shown for its other name."""
    paths = [authority.server("both.test", name, file=name) for name in ("one.test", "two.test")]
    server = secure(tls_certificate=paths)
    for name, wanted in (("one.test", 0), ("both.test", 0), ("two.test", 1)):
        with (
            one_request(server) as client,
            authority.trusting.wrap_socket(client, server_hostname=name) as secured,
        ):
            leaf = ssl.DER_cert_to_PEM_cert(secured.getpeercert(True) or b"")
            secured.sendall(b"hello\n")
        assert leaf.strip() in Path(paths[wanted]).read_text()


def test_sessions_resume_and_keep_the_identity(
    secure: Callable[..., Secure], authority: Authority
) -> None:
    """A resumed session needs no second verification, and has the identity of the first."""
    server = secure(tls_client_ca=authority.file)
    context = authority.context(authority.client("bob"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        one_request(server) as client,
        context.wrap_socket(client, server_hostname="localhost") as first,
    ):
        first.sendall(b"hello\n")
        assert first.recv(100) == b"got hello\n"
        session = first.session
    with (
        one_request(server) as client,
        context.wrap_socket(client, server_hostname="localhost", session=session) as again,
    ):
        again.sendall(b"hello\n")
        assert again.recv(100) == b"got hello\n"
        assert again.session_reused
    assert [one.tls.resumed for one in server.handled] == [False, True]
    assert {name_of(one) for one in server.handled} == {"bob"}


def test_proxy_header_comes_before_tls(authority: Authority, secure: Callable[..., Secure]) -> None:
    """The header is in the clear and the rest is encrypted; a second header within TLS is data."""
    server = secure(proxy_from="127.0.0.1")
    header = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n"
    with one_request(server) as client:
        client.sendall(header)
        with authority.trusting.wrap_socket(client, server_hostname="localhost") as secured:
            secured.sendall(header.replace(b"192.0.2.7", b"10.0.0.1"))
            assert secured.recv(100).startswith(b"got PROXY TCP4 10.0.0.1")
    (address,) = server.handled
    assert address == ("192.0.2.7", 4711)
    assert address.tls.version == "TLSv1.3"


@pytest.mark.parametrize("kind", [Secure, prefork.PreForkingTCPServer])
def test_context_of_the_program(authority: Authority, certificate: str, kind: Any) -> None:
    """A program can give a context, or a method that makes one and may use what __init__() has set."""
    asked_for: list[Any] = []

    class Own(kind):  # type: ignore[misc]
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.certificate = certificate
            self.handled: list[Any] = []

        def tls_context(self) -> ssl.SSLContext:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            context.sni_callback = lambda _sock, name, _context: asked_for.append(name)
            return context

    with Own(LOOPBACK, Answer) as server:
        for _ in range(2):
            assert asked(server, authority.trusting)[0] == b"got hello\n"
        assert server.handled[0].tls.version == "TLSv1.3"
        assert [one.tls.server_name for one in server.handled] == ["localhost"] * 2
    assert asked_for == ["localhost"] * 2


def test_attribute_that_is_set_late(authority: Authority, certificate: str) -> None:
    """A certificate that an object gets after it was made holds for handle_request(), too."""
    with prefork.PreForkingTCPServer(LOOPBACK, Answer) as server:
        server.tls_certificate = certificate
        vars(server)["handled"] = []
        assert asked(server, authority.trusting)[0] == b"got hello\n"


def test_handshake_is_taken_out_of_accept(authority: Authority, certificate: str) -> None:
    """The recipe that wraps ``server.socket`` gets its handshake in the edge, under the deadline."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    class Plain(prefork.AuthenticationMixIn, socketserver.TCPServer):
        handled: list[Any] = []  # noqa: RUF012 - one server
        edge_timeout = 0.2

        def authenticate(self, request: Any, client_address: Any) -> str | None:
            return None

        def verify_request(self, request: Any, client_address: Any) -> bool:
            return bool(request.cipher())  # as after accept() of the wrapped socket

    with Plain(LOOPBACK, Answer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with one_request(server) as client:
            assert client.recv(10) == b""  # a silent one
        server.edge_timeout = 5.0
        assert asked(server, authority.trusting)[0] == b"got hello\n"
        assert type(server.socket) is socket.socket
        assert server.handled[0].tls.version == "TLSv1.3"


def test_parking_handler_serves_what_is_decrypted(authority: Authority, certificate: str) -> None:
    """Requests that came in one record are all served, although no poll() knows of them."""

    class Lines(prefork.ParkingMixIn, socketserver.StreamRequestHandler):
        rbufsize = 0

        def handle(self) -> None:
            line = b""
            while not line.endswith(b"\n"):
                byte = self.rfile.read(1)
                if not byte:
                    return
                line += byte
            self.close_connection = line == b"3\n"
            self.wfile.write(line)

    with Secure(LOOPBACK, Lines, tls_certificate=certificate) as server:
        assert asked(server, authority.trusting, b"1\n2\n3\n")[0] == b"1\n2\n3\n"


def test_parking_handler_waits_where_there_is_no_lot(
    authority: Authority, certificate: str
) -> None:
    """Without a pool an encrypted connection stays with its handler, which serves the next request when it comes."""

    class Lines(prefork.ParkingMixIn, socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline())

    with Secure(LOOPBACK, Lines, tls_certificate=certificate) as server:
        with (
            one_request(server) as plain,
            authority.trusting.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            for line in (b"1\n", b"2\n"):
                client.sendall(line)
                assert client.recv(10) == line
        assert server.errors == []


# --- what is refused


def test_files_that_cannot_be_used(authority: Authority, certificate: str, tmp_path: Path) -> None:
    """Each file is checked before anything is bound, and the error names the setting, the file and the remedy."""
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    other = authority.server("other", file="other")
    old = authority.server("old", file="old", ends=datetime(2024, 1, 1, tzinfo=UTC))
    key = tmp_path / "key.pem"
    plain = serialization.load_pem_private_key(Path(certificate).read_bytes(), None)
    key.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    password, wrong = tmp_path / "password", tmp_path / "wrong"
    password.write_text("secret\n")
    wrong.write_text("other\n")

    def error(key: str, **given: Any) -> str:
        with pytest.raises(TLSSettingError) as caught:
            load(TLSFiles(**{"certificates": (certificate,), **given}))
        assert caught.value.key == key
        return str(caught.value)

    missing = str(tmp_path / "missing.pem")
    assert "No such file" in error("tls_certificate", certificates=(missing,))
    assert "has no certificate" in error("tls_certificate", certificates=(str(empty),))
    assert "has expired on 2024" in error("tls_certificate", certificates=(old,))
    assert "does not belong to" in error("tls_key", keys=(other,))
    assert "No such file" in error("tls_key", keys=(missing,))
    assert "no private key" in error("tls_key", keys=(str(empty),))
    assert "give each its key" in error("tls_key", keys=(certificate, other))
    assert "give tls_key_password_file" in error("tls_key", keys=(str(key),))
    opens = error("tls_key_password_file", keys=(str(key),), password_file=str(wrong))
    assert "does not open" in opens
    wrong.write_text("x" * 1025)
    long = error("tls_key_password_file", keys=(str(key),), password_file=str(wrong))
    assert "1024 bytes at most" in long
    alone = tmp_path / "alone.pem"
    text = Path(certificate).read_text()
    alone.write_text(text[text.index("-----BEGIN CERTIFICATE") :])
    assert "give the file of the key" in error("tls_certificate", certificates=(str(alone),))
    assert "no authority that is valid now" in error("tls_client_ca", client_ca=old)
    for setting in ("client_ca", "password_file"):
        name = "tls_client_ca" if setting == "client_ca" else "tls_key_password_file"
        assert "null" in error(name, **{setting: "a\0b"})
    assert "null" in error("tls_key", keys=("a\0b",))
    assert "No such file" in error("tls_key_password_file", keys=(str(key),), password_file=missing)
    assert "has no certificate" in error("tls_client_ca", client_ca=str(empty))
    assert "No such file" in error("tls_client_ca", client_ca=missing)
    for protocol in ("x" * 300, "\xe9"):
        assert "255 bytes" in error("tls_alpn", alpn=(protocol,))
    load(TLSFiles((certificate,), (str(key),), str(password)))


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"tls_certificate": None}, "TLSMixIn needs tls_certificate or tls_context"),
        ({"tls_certificate": None, "tls_client_ca": "/x"}, "needs tls_certificate"),
        ({"tls_context": 5}, "keep one"),
        ({"tls_context": 5, "tls_certificate": None}, "is refused: an ssl.SSLContext, or a method"),
        ({"tls_certificate": "/nowhere.pem"}, "attribute Secure.tls_certificate.*No such file"),
    ],
)
def test_settings_that_cannot_be(
    secure: Callable[..., Secure], attributes: dict[str, Any], words: str
) -> None:
    """A server that would serve without protection, or with two answers to one question, does not serve."""
    with pytest.raises(prefork.SettingsError, match=words):
        secure(**attributes).handle_request()


def test_datagrams_cannot_be_encrypted(certificate: str) -> None:
    """TLS for UDP is refused and not left out."""

    class Datagrams(prefork.TLSMixIn, socketserver.UDPServer):
        tls_certificate = certificate

    with pytest.raises(prefork.SettingsError, match="DTLS"):
        Datagrams(LOOPBACK, Answer)


def test_changed_files_are_seen(tmp_path: Path) -> None:
    """A file that is written, replaced, removed or linked elsewhere has another stamp; one at rest has not."""
    file, link, other = (tmp_path / name for name in ("file", "link", "other"))
    file.write_text("1")
    link.symlink_to(file)
    paths = [str(file), str(link)]
    first = stamps_of(paths)
    assert stamps_of(paths) == first
    other.write_text("2")
    link.unlink()
    link.symlink_to(other)
    assert stamps_of(paths)[1] != first[1]
    file.unlink()
    assert stamps_of(paths)[0] is None


def test_renewal_asks_once_when_it_is_over() -> None:
    """A change is reported once, a second after the last file was written, and looks are a second apart."""
    found: list[Any] = [(1, 1, 1)]
    looks: list[int] = []

    def look(_files: Any) -> Any:
        looks.append(1)
        return tuple(found)

    watch = FileWatch({"a": (1, 1, 1)}, look)
    assert [watch.changed(at) for at in (0.0, 0.5, 1.0)] == [False] * 3
    assert len(looks) == 2
    found[0] = (2, 2, 2)
    assert not watch.changed(2.0)
    found[0] = (3, 3, 3)
    assert [watch.changed(at) for at in (3.0, 4.0, 5.0)] == [False, True, False]
    assert not FileWatch({}, look).changed(9.0)
    started_with_another = FileWatch({"a": (1, 1, 1)}, look)
    assert [started_with_another.changed(at) for at in (6.0, 7.0, 8.0)] == [False, True, False]
    found[0] = None
    assert [watch.changed(at) for at in (10.0, 11.0, 12.0)] == [False] * 3
    found[0] = (4, 4, 4)
    assert [watch.changed(at) for at in (13.0, 14.0)] == [False, True]
