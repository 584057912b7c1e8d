"""PROXY headers of real senders: HAProxy, nginx, curl and dnsdist, in front of a pool."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from typing import TYPE_CHECKING, Any

from prefork.edge.proxy import parse_tlvs
from tests.support.certificates import Authority
from tests.support.clients import TIMEOUT, ask, connect, read_all, read_to_the_end, send_line
from tests.support.engines import needs, running
from tests.support.ports import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

BEHIND = """
from tests.support.app import *
import prefork

class Tell(prefork.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        if line.startswith(b"GET"):
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
        client, proxy = self.client_address, self.client_address.proxy
        tell("client", [*client, client.peer[1], proxy and [proxy.version, proxy.is_local, proxy.destination, len(proxy.tlvs)]])
        self.wfile.write(b"got " + line)

class Server(prefork.PreForkingTCPServer):
    proxy_from = "127.0.0.1"
    workers = 2
    access_log = "json"

serve(Tell, Server)
"""

HAPROXY = """
global
    maxconn 50
defaults
    mode tcp
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen one
    bind 127.0.0.1:{one}
    server s 127.0.0.1:{port} send-proxy
listen two
    bind 127.0.0.1:{two}
    server s 127.0.0.1:{port} send-proxy-v2 proxy-v2-options unique-id,authority check inter 50ms
    unique-id-format %pid
"""

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events {{ worker_connections 32; }}
stream {{
    server {{
        listen 127.0.0.1:{one};
        proxy_pass 127.0.0.1:{port};
        proxy_protocol on;
    }}
}}
"""


ALPN, AUTHORITY, CRC32C, SSL, SSL_VERSION, SSL_CN = 0x01, 0x02, 0x03, 0x20, 0x21, 0x22
"""Types of extensions, as the specification of the protocol numbers them."""


def told_by_clients(program: Program, version: int) -> list[Any]:
    """Return what the handlers said of clients whose header had this version and was not LOCAL."""
    return [
        one
        for one in program.all_told("client")
        if one[3] is not None and one[3][:2] == [version, False]
    ]


def check_client(program: Program, port: int, version: int) -> list[Any]:
    """Ask through a proxy, and return what the handler said of the client, which is this one."""
    with connect(("127.0.0.1", port)) as client:
        own = client.getsockname()
        send_line(client, "hello")
        assert read_all(client) == "got hello"
        (one,) = wait_until(
            lambda: [one for one in told_by_clients(program, version) if one[1] == own[1]],
            lambda: f"the handler told {own}",
        )
    assert one[:2] == [*own]
    assert one[2] != own[1]
    assert one[3][2] == ["127.0.0.1", port]
    return [*one]


def test_haproxy(start: Callable[..., Program], tmp_path: Path) -> None:
    """HAProxy's headers of both versions name the client, and its health checks find a server that is up."""
    haproxy = needs("haproxy")
    program = start(BEHIND)
    one, two = free_port(), free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY.format(one=one, two=two, port=program.address()[1]))
    with running([haproxy, "-db", "-f", str(config)], tmp_path, one, two):
        clients = [check_client(program, one, 1), check_client(program, two, 2)]
        assert clients[1][3][3] >= 1  # the unique id is an extension
        checks = wait_until(
            lambda: [line for line in program.logged(r"INFO \{") if '"peer"' not in line],
            lambda: "a health check has come",
        )
    # Beside the two there is the one that found out whether HAProxy listens, and that said nothing.
    for host, port, *_ in clients:
        (line,) = program.wait_logged(f'"client": "{host}:{port}", "peer"')
        assert json.loads(line.partition(" INFO ")[2])["outcome"] == "ok"
    assert all(json.loads(line.partition(" INFO ")[2])["outcome"] == "ok" for line in checks)
    # On a busy machine a health check may be over before HAProxy has sent its header.
    assert [line for line in program.logged("refused") if " reason=gone " not in line] == []


TERMINATING = """
global
    maxconn 50
defaults
    mode tcp
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen front
    bind 127.0.0.1:{front} ssl crt {certificate} ca-file {ca} verify required alpn echo,other
    server s 127.0.0.1:{port} send-proxy-v2-ssl-cn proxy-v2-options ssl,cert-cn,ssl-cipher,authority,crc32c
"""


def test_haproxy_that_decrypts(start: Callable[..., Program], tmp_path: Path) -> None:
    """What HAProxy says of the TLS that it has ended arrives: version, name, protocol and the client's certificate."""
    haproxy = needs("haproxy")
    authority = Authority(tmp_path)
    program = start(
        BEHIND.replace(
            'tell("client", [*client,',
            'tell("tlvs", [[kind, value.hex()] for kind, value in proxy.tlvs]); tell("client", [*client,',
        )
    )
    front = free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        TERMINATING.format(
            front=front,
            port=program.address()[1],
            certificate=authority.server("localhost"),
            ca=authority.file,
        )
    )
    context = authority.context(authority.client("alice"))
    context.set_alpn_protocols(["echo"])
    with (
        running([haproxy, "-db", "-f", str(config)], tmp_path, front),
        connect(("127.0.0.1", front)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"hello\n")
        assert client.recv(100) == b"got hello\n"
        own = client.getsockname()
    tlvs = {kind: bytes.fromhex(value) for kind, value in program.told("tlvs")}
    (told,) = told_by_clients(program, 2)
    assert told[:2] == [*own]
    assert (tlvs[ALPN], tlvs[AUTHORITY], len(tlvs[CRC32C])) == (b"echo", b"localhost", 4)
    flags, verified = struct.unpack_from("!BI", tlvs[SSL])
    assert (flags, verified) == (0b111, 0)  # TLS, with a certificate, which was verified
    inner = dict(parse_tlvs(tlvs[SSL][5:]))
    assert (inner[SSL_VERSION], inner[SSL_CN]) == (b"TLSv1.3", b"alice")
    assert program.logged("refused|Traceback") == []


def test_nginx(start: Callable[..., Program], tmp_path: Path) -> None:
    """The stream module of nginx names the client."""
    nginx = needs("nginx")
    program = start(BEHIND)
    one = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(one=one, port=program.address()[1], folder=tmp_path))
    if subprocess.run(
        [nginx, "-t", "-c", str(config)], capture_output=True, check=False
    ).returncode:
        needs("the stream module of nginx")
    with running([nginx, "-c", str(config)], tmp_path, one):
        check_client(program, one, 1)


def test_curl(start: Callable[..., Program]) -> None:
    """Curl --haproxy-protocol speaks for itself, and a client without a header is refused."""
    curl = needs("curl")
    program = start(BEHIND)
    host, port = program.address()[:2]
    done = subprocess.run(
        [curl, "-sS", "--haproxy-protocol", f"http://{host}:{port}/"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == b"got GET / HTTP/1.1\r\n", done.stderr
    assert told_by_clients(program, 1)
    with connect((host, port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert read_to_the_end(client) == ""
    program.wait_logged("refused a client reason=proxy client=127.0.0.1:")


def test_dnsdist(start: Callable[..., Program], tmp_path: Path) -> None:
    """Dnsdist puts a header before each UDP query; the server sees its client, and the answer comes back."""
    dnsdist = needs("dnsdist")
    program = start(
        "from tests.support.app import *\n"
        "import prefork\n"
        "class Answer(prefork.DatagramRequestHandler):\n"
        "    def handle(self):\n"
        "        tell('client', [*self.client_address, self.client_address.peer[1]])\n"
        "        data = bytearray(self.packet)\n"
        "        data[2] |= 0x80\n"
        "        self.wfile.write(data)\n"
        "class Server(prefork.PreForkingUDPServer):\n"
        "    proxy_from = '127.0.0.1'\n"
        "    workers = 1\n"
        "serve(Answer, Server)\n"
    )
    port = free_port(socket.SOCK_DGRAM)
    config = tmp_path / "dnsdist.conf"
    config.write_text(
        f"setLocal('127.0.0.1:{port}')\n"
        f"newServer{{address='127.0.0.1:{program.address()[1]}', useProxyProtocol=true, healthCheckMode='up'}}\n"
    )
    query = (
        struct.pack("!6H", 4711, 0x0100, 1, 0, 0, 0)
        + b"\7example\3org\0"
        + struct.pack("!2H", 1, 1)
    )
    command = [dnsdist, "--supervised", "--disable-syslog", "-C", str(config)]
    with running(command, tmp_path, port), socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT)
        client.connect(("127.0.0.1", port))
        client.send(query)
        assert client.recv(512)[:2] == query[:2]
        own = client.getsockname()
        (told,) = [one for one in program.all_told("client") if one[:2] == [*own]]
        assert told[2] != own[1]


def test_pool_without_a_proxy_in_front(start: Callable[..., Program]) -> None:
    """A pool with rules alone counts who is refused, and serves all others as before."""
    program = start(
        "from tests.support.app import *\n"
        "import prefork\n"
        "class Server(prefork.PreForkingTCPServer):\n"
        "    deny = '127.0.0.2'\n"
        "    workers = 1\n"
        "serve(Echo, Server)\n"
    )
    address = program.address()
    assert ask(address).endswith("hello")
    with socket.socket() as client:
        client.settimeout(TIMEOUT)
        client.bind(("127.0.0.2", 0))
        client.connect(address)
        assert client.recv(10) == b""
    program.wait_logged("refused a client reason=address client=127.0.0.2:")
    assert ask(address).endswith("hello")
