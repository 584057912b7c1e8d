"""TLS in running pools, with the clients that people have: curl, openssl, gnutls-cli, sslscan."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.workers.scoreboard import PoolField, SlotField
from prefork.workers.states import Rejection
from tests.support.board import board_of
from tests.support.certificates import Authority
from tests.support.clients import read_to_the_end
from tests.support.engines import needs
from tests.support.waiting import CEILING, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

SECURE = """
from tests.support.app import *
import prefork

class Hello(prefork.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        if not line:
            return
        tls = self.client_address.tls
        if line.startswith(b"GET"):
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
        self.wfile.write(f"{{os.getpid()}} {{tls.version}} {{tls.alpn}} {{tls.resumed}} {{self.client_address.identity}}\\n".encode())

class Server(prefork.PreForkingTCPServer):
    workers = {workers}
    edge_timeout = {timeout}
    tls_certificate = {certificate!r}
    tls_client_ca = {ca!r}
    tls_alpn = "http/1.1"
    tls_watch = {watch}
    park_new = {park_new}

serve(Hello, Server)
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Give an authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def secure(start: Callable[..., Program], authority: Authority) -> Callable[..., Program]:
    """Start a pool with TLS."""

    def begin(**given: Any) -> Program:
        values = {
            "workers": 2,
            "timeout": 5.0,
            "certificate": "",
            "ca": None,
            "watch": False,
            "park_new": False,
            **given,
        }
        values["certificate"] = values["certificate"] or authority.server("localhost", "127.0.0.1")
        return start(SECURE.format(**values))

    return begin


def ask(address: Any, context: ssl.SSLContext, session: Any = None) -> tuple[list[str], Any]:
    """Make one request; return the words of the answer, and the session."""
    with (
        socket.create_connection(address, timeout=CEILING) as plain,
        context.wrap_socket(
            plain, server_hostname="localhost", session=session, suppress_ragged_eofs=False
        ) as client,
    ):
        client.sendall(b"hello\n")
        answer = b""
        while part := client.recv(1000):
            answer += part
        return answer.decode().split(" ", 4), client.session


def run(*command: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a client to its end."""
    return subprocess.run(command, input=given, capture_output=True, timeout=30, check=False)


def test_curl(secure: Callable[..., Program], authority: Authority, tmp_path: Path) -> None:
    """Curl shows a certificate, negotiates a protocol, and does not speak to a server of another authority."""
    curl = needs("curl")
    program = secure(ca=authority.file)
    url = f"https://localhost:{program.address()[1]}/"
    shared = ("-sS", "--http1.1", "--resolve", f"localhost:{program.address()[1]}:127.0.0.1")
    good = run(curl, *shared, "--cacert", authority.file, "--cert", authority.client("alice"), url)
    words = good.stdout.decode().split(" ", 4)
    assert words[1:4] == ["TLSv1.3", "http/1.1", "False"], good.stderr
    assert words[4].startswith("CN=alice,")
    without = run(curl, *shared, "--cacert", authority.file, url)
    assert without.returncode in (52, 55, 56)  # the server has ended the connection
    stranger = Authority(tmp_path)
    other = run(curl, *shared, "--cacert", stranger.file, url)
    assert other.returncode == 60  # curl cannot verify the server
    program.wait_logged("refused a client reason=tls client=127.0.0.1:")
    assert program.logged("Traceback") == []


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_sessions_resume_in_other_workers(
    secure: Callable[..., Program], authority: Authority, tmp_path: Path, version: str
) -> None:
    """A session that one worker has begun is resumed by the others, as openssl sees it."""
    openssl = needs("openssl")
    program = secure(workers=3)
    where = f"127.0.0.1:{program.address()[1]}"
    session = str(tmp_path / "session")
    shared = (openssl, "s_client", "-connect", where, "-servername", "localhost", version, "-quiet")
    first = run(*shared, "-sess_out", session, given=b"hello\n").stdout.decode().split()
    assert first[3] == "False"
    stopped = [int(first[0])]
    try:
        for _ in range(2):  # each time only the workers are left that have not served yet
            os.kill(stopped[-1], signal.SIGSTOP)
            again = run(*shared, "-sess_in", session, given=b"hello\n").stdout.decode().split()
            assert again[3] == "True"
            stopped.append(int(again[0]))
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert len({*stopped}) == 3
    with board_of(program.pid) as board:
        counts = [
            sum(slot[field] for slot in board.snapshot().slots)  # type: ignore[index]
            for field in range(SlotField.TLS_HANDSHAKES, SlotField.TLS_HANDSHAKES + 4)
        ]
    assert counts == ([1, 2, 0, 0] if version == "-tls1_2" else [0, 0, 1, 2])


@pytest.mark.once
def test_what_openssl_is_refused(
    secure: Callable[..., Program], authority: Authority, tmp_path: Path
) -> None:
    """No client renegotiates TLS 1.2, and none sends data before the end of a resumed handshake of TLS 1.3."""
    openssl = needs("openssl")
    program = secure()
    session, early = tmp_path / "session", tmp_path / "early"
    shared = (openssl, "s_client", "-connect", f"127.0.0.1:{program.address()[1]}")
    shared = (*shared, "-CAfile", authority.file)
    again = run(*shared, "-tls1_2", given=b"R\nhello\n")
    assert b"RENEGOTIATING" in again.stderr
    assert b"no renegotiation" in again.stderr
    early.write_bytes(b"hello\n")
    run(*shared, "-tls1_3", "-quiet", "-sess_out", str(session), given=b"hello\n")
    resumed = run(*shared, "-tls1_3", "-sess_in", str(session), "-early_data", str(early))
    assert b"Reused, TLSv1.3" in resumed.stdout
    assert b"Early data was not sent" in resumed.stdout


@pytest.mark.once
def test_gnutls(secure: Callable[..., Program], authority: Authority) -> None:
    """GnuTLS, another implementation than the server's, is served, and sees an orderly close."""
    gnutls = needs("gnutls-cli")
    program = secure()
    done = run(
        *(gnutls, "--x509cafile", authority.file, "--port", str(program.address()[1])),
        *("--verify-hostname=localhost", "--alpn=http/1.1", "127.0.0.1"),
        given=b"hello\n",
    )
    assert b" TLSv1.3 http/1.1 False None" in done.stdout, done.stderr
    assert b"Peer has closed the GnuTLS connection" in done.stdout
    assert b"non-properly terminated" not in done.stdout + done.stderr


@pytest.mark.once
def test_gnutls_resumes(secure: Callable[..., Program], authority: Authority) -> None:
    """GnuTLS resumes a session of either version with the one ticket that it gets."""
    gnutls = needs("gnutls-cli")
    program = secure()
    for version in ("1.2", "1.3"):
        done = run(
            *(gnutls, "--resume", "--x509cafile", authority.file, "--verify-hostname=localhost"),
            *("--port", str(program.address()[1]), "127.0.0.1"),
            *("--priority", f"NORMAL:-VERS-ALL:+VERS-TLS{version}"),
            given=b"hello\n",
        )
        assert b"This is a resumed session" in done.stdout, done.stderr
        assert f" TLSv{version} None True None".encode() in done.stdout


@pytest.mark.once
def test_scanner_finds_nothing(secure: Callable[..., Program]) -> None:
    """Sslscan finds no old version, no weak cipher, no renegotiation and no compression."""
    sslscan = needs("sslscan")
    program = secure()
    found = run(
        sslscan, "--no-colour", "--no-failed", f"127.0.0.1:{program.address()[1]}"
    ).stdout.decode()
    versions = dict(re.findall(r"^(SSLv\d|TLSv1\.\d)\s+(enabled|disabled)$", found, re.MULTILINE))
    assert [name for name, state in versions.items() if state == "enabled"] == [
        "TLSv1.2",
        "TLSv1.3",
    ]
    assert "Session renegotiation not supported" in found
    assert re.search("Compression disabled|does not support compression", found)
    ciphers = re.findall(r"^(?:Preferred|Accepted)\s+\S+\s+(\d+) bits\s+(\S+)", found, re.MULTILINE)
    assert len(ciphers) >= 5
    assert all(int(bits) >= 128 for bits, _ in ciphers)
    assert all(re.search("GCM|CHACHA20", name) for _, name in ciphers)
    assert "vulnerable to heartbleed" not in found.replace("not vulnerable to heartbleed", "")


@pytest.mark.parametrize("park_new", [False, True])
def test_silent_clients(
    secure: Callable[..., Program], authority: Authority, park_new: bool
) -> None:
    """Silent clients cost a worker at most ``edge_timeout`` each; parked until they speak, none at all."""
    program = secure(timeout=0.1, park_new=park_new)
    address = program.address()
    count = 1000 if park_new else 30
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(address, timeout=CEILING))
        begun = time.monotonic()
        assert ask(address, authority.trusting)[0][1] == "TLSv1.3"
        took = time.monotonic() - begun
        with board_of(program.pid) as board:
            if park_new:
                # On a busy machine the lot may take them too slowly: then a worker closes some at once.
                wait_until(
                    lambda: (
                        board.pool(PoolField.PARKED_TOTAL)
                        + sum(slot[SlotField.PARK_FAILURES] for slot in board.snapshot().slots)
                        >= count
                    ),
                    lambda: f"{board.pool(PoolField.PARKED)} are parked",
                )
                assert sum(slot[SlotField.REJECTED] for slot in board.snapshot().slots) == 0
            else:
                assert took < 10 + count * 0.1 / 2
                wait_until(
                    lambda: (
                        sum(one.rejections[Rejection.TIMEOUT] for one in board.snapshot().slots)
                        >= count
                    ),
                    lambda: "each of them was counted",
                )
    assert len(program.logged("refused a client")) <= 2 * (took + 2)
    assert program.logged("Traceback") == []


@pytest.mark.once
def test_reloads_lose_no_handshake(
    secure: Callable[..., Program], authority: Authority, tmp_path: Path
) -> None:
    """While a certificate is replaced again and again, under load, every handshake succeeds."""
    file = tmp_path / "server.pem"
    certificates = [
        Path(authority.server("localhost", file=f"localhost{number}")).read_bytes()
        for number in range(2)
    ]
    file.write_bytes(certificates[0])
    program = secure(certificate=str(file))
    address = program.address()
    failures: list[BaseException] = []
    served: list[float] = []
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            try:
                ask(address, authority.trusting)
                served.append(time.monotonic())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure
                failures.append(error)

    clients = [threading.Thread(target=load) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        for number in range(1, int(os.environ.get("PREFORK_TEST_CHANGES", "2")) + 1):
            replacement = tmp_path / "new.pem"
            replacement.write_bytes(certificates[number % 2])
            replacement.replace(file)
            program.popen.send_signal(signal.SIGHUP)
            program.wait_logged("INFO master reloaded", times=number, ceiling=30)
    finally:
        over.set()
        for client in clients:
            client.join(20)
    assert failures == []
    assert len(served) > 10
    shown = ssl.get_server_certificate(address)
    assert shown.strip() in certificates[number % 2].decode()


@pytest.mark.once
def test_sessions_end_with_the_authority(
    secure: Callable[..., Program], authority: Authority, tmp_path: Path
) -> None:
    """After a reload with another authority for clients, a session of a client of the old one opens nothing."""
    clients = tmp_path / "clients.pem"
    old, new = (Authority(_folder(tmp_path, name)) for name in ("old", "new"))
    clients.write_bytes(Path(old.file).read_bytes())
    program = secure(ca=str(clients), workers=1)
    address = program.address()
    alice, bob = (_known(authority, one.client("client")) for one in (old, new))
    words, session = ask(address, alice)
    assert words[3] == "False"
    assert ask(address, alice, session)[0][3] == "True"
    clients.write_bytes(Path(new.file).read_bytes())
    program.popen.send_signal(signal.SIGHUP)
    program.wait_logged("INFO master reloaded")
    with pytest.raises(OSError, match=r"(?i)alert|reset|eof"):
        ask(address, alice, session)
    assert ask(address, bob)[0][3] == "False"
    program.wait_logged("refused a client reason=tls .*client certificate")


def _folder(path: Path, name: str) -> Path:
    folder = path / name
    folder.mkdir()
    return folder


def _known(authority: Authority, certificate: str) -> ssl.SSLContext:
    """Return a client's context that shows a certificate, with one version so that a refusal is plain."""
    context = authority.context(certificate)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.once
def test_renewed_certificate_reloads_by_itself(
    secure: Callable[..., Program], authority: Authority, tmp_path: Path
) -> None:
    """With ``tls_watch`` a file that changes asks for a reload; one that is broken leaves the pool as it is."""
    file = tmp_path / "server.pem"
    certificates = [
        Path(authority.server("localhost", file=f"renewed{number}")).read_bytes()
        for number in range(2)
    ]
    file.write_bytes(certificates[0])
    program = secure(certificate=str(file), watch=True, workers=1)
    address = program.address()
    file.write_text("no certificate")
    program.wait_logged("reload requested signal=tls_watch")
    program.wait_logged("has no certificate in PEM form")
    assert ask(address, authority.trusting)[0][1] == "TLSv1.3"
    file.write_bytes(certificates[1])
    wait_until(
        lambda: ssl.get_server_certificate(address).strip() in certificates[1].decode(),
        lambda: "the new certificate is shown",
        30,
    )


def test_wrapped_listener(start: Callable[..., Program], authority: Authority) -> None:
    """The server of ``http.server`` that wraps its listening socket handshakes in the edge, under its deadline."""
    program = start(
        "from tests.support.app import *\n"
        "import http.server, prefork, ssl\n"
        "class HTTPSServer(http.server.HTTPServer):\n"
        "    # as http.server has it from Python 3.14 on\n"
        "    def server_activate(self):\n"
        "        super().server_activate()\n"
        "        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)\n"
        f"        context.load_cert_chain({authority.server('localhost')!r})\n"
        "        self.socket = context.wrap_socket(self.socket, server_side=True)\n"
        "class Server(prefork.PreForkingMixIn, getattr(http.server, 'NoSuchName', HTTPSServer)):\n"
        "    edge_timeout = 0.8\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "        self.wfile.write(self.client_address.tls.version.encode())\n"
        "serve(Handler, Server, workers=1)\n"
    )
    address = program.address()
    with socket.create_connection(address, timeout=CEILING) as silent:
        assert read_to_the_end(silent) == ""
    with (
        socket.create_connection(address, timeout=CEILING) as plain,
        authority.trusting.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while part := client.recv(1000):
            answer += part
    assert answer.endswith(b"TLSv1.3")
    program.wait_logged("refused a client reason=timeout")
