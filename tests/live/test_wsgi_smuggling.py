"""Requests that two readers could understand in two ways, sent through HAProxy and nginx to a WSGI application.

Each proxy gives every request that it forwards an id, and notes the same id on the answer that it takes for the answer
to that request. It keeps its connections to the pool, and sends requests of all clients over them. If proxy and pool
disagreed on where a request ends, then a request without an id would reach the application, or an answer would go to
another request: such a pair could be used to smuggle one client's request into the connection of others.

Both proxies are as lenient as their settings allow, so that much of what is malformed reaches the pool.
"""

from __future__ import annotations

import concurrent.futures
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.engines import NGINX_ALONE, NGINX_FOLDERS, needs, running
from tests.support.http_cases import ACCEPTED, POST, REFUSED
from tests.support.ports import free_port
from tests.support.strict_http import StrictClient
from tests.support.waiting import CEILING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.server import Program

PROGRAM = """
    from tests.support.app import *
    from prefork.wsgi import WSGIServer

    def application(environ, start_response):
        name = environ.get("HTTP_X_ID", "")
        tell("request", [name, environ["PATH_INFO"]])
        environ["wsgi.input"].read(1 << 20)
        body = f"{name} {environ['PATH_INFO']}\\n".encode("latin-1")
        start_response("200 OK", [("X-Id", name), ("Content-Length", str(len(body)))])
        return [body]

    class Server(WSGIServer):
        workers = 2
        edge_timeout = client_timeout = 1
        when_ready = announce

    log_to_stderr()
    with Server(("127.0.0.1", 0), application) as server:
        server.serve_forever()
"""

HAPROXY = """
global
    maxconn 400
defaults
    mode http
    option accept-invalid-http-request
    timeout connect 5s
    timeout client 1s
    timeout server 5s
    timeout http-request 1s
    timeout http-keep-alive 500ms
    http-reuse always
    unique-id-format %[uuid()]
frontend all
    bind 127.0.0.1:{port}
    http-request set-header X-Id %[unique-id]
    http-response set-header X-Proxy-Id %[unique-id]
    default_backend pool
backend pool
    server pool 127.0.0.1:{pool}
"""

NGINX = (
    NGINX_ALONE
    + """
events {{ worker_connections 400; }}
http {{
"""
    + NGINX_FOLDERS
    + """
    client_header_timeout 1s;
    client_body_timeout 1s;
    keepalive_timeout 500ms;
    ignore_invalid_headers off;
    underscores_in_headers on;
    upstream pool {{ server 127.0.0.1:{pool}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://pool;
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_set_header Connection "";
            proxy_set_header X-Id $request_id;
            add_header X-Proxy-Id $request_id always;
        }}
    }}
}}
"""
)

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: example\r\nX-Id: forged\r\nConnection: close\r\n\r\n"
"""What an attacker would like the application to take for a request of its own. A proxy replaces the id."""

CODINGS = (
    *(b"Transfer-Encoding: chunked", b"transfer-encoding: CHUNKED", b"Transfer-Encoding : chunked"),
    *(
        b"Transfer-Encoding\t: chunked",
        b"Transfer-Encoding:\x0bchunked",
        b"Transfer-Encoding: xchunked",
    ),
    *(
        b'Transfer-Encoding: "chunked"',
        b"Transfer-Encoding: identity, chunked",
        b"Transfer_Encoding: chunked",
    ),
    *(
        b"X: a\r\n Transfer-Encoding: chunked",
        b"X: a\nTransfer-Encoding: chunked",
        b"X: a\rTransfer-Encoding: chunked",
    ),
    *(
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding: chunked;a=b",
    ),
    *(
        b"Transfer-Encoding:\r\n chunked",
        b"\0Transfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\0",
    ),
)
"""Ways to say that a body comes in chunks, which some readers understand and others do not."""


def with_a_request_inside() -> Iterator[bytes]:
    """Yield messages whose body is a request for a reader who takes the end of the message for another place."""
    in_chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    after_chunks = b"0\r\n\r\n" + SMUGGLED
    for coding in (b"X: a", *CODINGS):
        for length, body in (
            (len(SMUGGLED), SMUGGLED),
            (len(after_chunks), after_chunks),
            (in_chunk.index(b"G"), in_chunk),
            (None, in_chunk),
        ):
            said = b"" if length is None else b"Content-Length: %d\r\n" % length
            yield POST + coding + b"\r\n" + said + b"\r\n" + body
            yield POST + said + coding + b"\r\n\r\n" + body


PROXIES = {"haproxy": (HAPROXY, ["-db", "-f"]), "nginx": (NGINX, ["-c"])}


def answered(port: int, sent: bytes) -> bytes:
    """Return all that a client gets for these bytes until the proxy closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), CEILING) as client:
        try:
            client.sendall(sent)
            while piece := client.recv(65536):
                received += piece
        except ConnectionError:
            pass  # the proxy has refused what it had not read yet
    return received


def ids_in(received: bytes) -> list[tuple[str, str]]:
    """Return for each answer of the application the id that it has, and the one that the proxy has noted on it."""
    found = []
    for answer in received.split(b"HTTP/1.1 200 ")[1:]:
        lines = answer.decode("latin-1").split("\r\n\r\n")[0].lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:])
        found.append((fields["x-id"], fields["x-proxy-id"]))
    return found


@pytest.mark.parametrize("name", PROXIES)
def test_proxy_and_pool_agree_where_each_request_ends(
    start: Callable[..., Program], tmp_path: Path, name: str
) -> None:
    """Each request that reaches the application is one that the proxy has sent, and each answer goes to its request."""
    engine, (config, arguments) = needs(name), PROXIES[name]
    program = start(PROGRAM)
    port = free_port()
    path = tmp_path / "proxy.conf"
    path.write_text(config.format(port=port, pool=program.address()[1], folder=tmp_path))
    cases = [sent for sent, _ in ACCEPTED] + [sent for _, sent in REFUSED.values()]
    cases += with_a_request_inside()
    with running([engine, *arguments, str(path)], tmp_path, port):
        with concurrent.futures.ThreadPoolExecutor(16) as clients:
            received = [*clients.map(lambda sent: answered(port, sent + SMUGGLED), cases)]
        client = StrictClient(("127.0.0.1", port))
        others = [client.ask("GET", f"/other/{number}") for number in range(8)]
        client.close()
    for number, other in enumerate(others):
        assert other.body.decode().split()[1] == f"/other/{number}"
        assert other.headers[b"x-id"] == other.headers[b"x-proxy-id"]
    pairs = [pair for one in received for pair in ids_in(one)]
    assert all(own == noted for own, noted in pairs)
    assert program.stop() == 0
    ids = [request_id for request_id, _ in program.all_told("request")]
    assert len(ids) == len(set(ids))
    assert not {"", "forged"}.intersection(ids)
    assert {own for own, _ in pairs} <= {one.lower() for one in ids}
    assert len(pairs) > len(ACCEPTED)  # much has come through
