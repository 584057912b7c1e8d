"""Requests as a client may send them: which of them an application gets to see, and where each one ends."""

from __future__ import annotations

from ast import literal_eval
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.wsgi.head import RefusedRequest, parse_head
from tests.support.http_exchange import HEAD, answers, exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with what the request was."""
    body = environ["wsgi.input"].read(1 << 24)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} ".encode("latin-1") + body]


CHECKED = validator(echo)

POST = b"POST /p HTTP/1.1\r\nHost: example\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (HEAD + b"\r\n", [b"GET / "]),
        (HEAD + b"\r\n" + HEAD + b"\r\n", [b"GET / ", b"GET / "]),
        (POST + b"Content-Length: 3\r\n\r\nabc", [b"POST /p abc"]),
        (POST + b"Content-Length: 3\r\n\r\nabc" + HEAD + b"\r\n", [b"POST /p abc", b"GET / "]),
        (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", [b"POST /p abc"]),
        (
            CHUNKED + b"3\r\nab\n\r\n2\r\n\n\n\r\n0\r\n\r\n" + HEAD + b"\r\n",
            [b"POST /p ab\n\n\n", b"GET / "],
        ),
        (
            CHUNKED + b"3;name=value\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n" + HEAD + b"\r\n",
            [b"POST /p abc", b"GET / "],
        ),
        (POST + b"Transfer-Encoding: CHUNKED\r\n\r\n1\r\na\r\n0\r\n\r\n", [b"POST /p a"]),
        (b"\r\n\r\n" + HEAD + b"\r\n", [b"GET / "]),
        (b"GET http://example/way?a=b HTTP/1.1\r\nHost: other\r\n\r\n", [b"GET /way "]),
        (b"GET http://example HTTP/1.1\r\nHost: other\r\n\r\n", [b"GET / "]),
        (b"OPTIONS * HTTP/1.1\r\nHost: example\r\n\r\n", [b"OPTIONS * "]),
        (b"GET /%7Ea%2Fb%20c HTTP/1.1\r\nHost: example\r\n\r\n", [b"GET /~a/b c "]),
        (b"GET /old HTTP/1.0\r\n\r\n", [b"GET /old "]),
        (
            b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + HEAD + b"\r\n",
            [b"GET /old ", b"GET / "],
        ),
        (HEAD + b"Connection: close\r\n\r\n" + HEAD + b"\r\n", [b"GET / "]),
        (
            HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + HEAD + b"\r\n",
            [b"GET / ", b"GET / "],
        ),
        (
            POST
            + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
            + HEAD
            + b"\r\n",
            [b"POST /p a", b"GET / "],
        ),
    ],
)
@pytest.mark.parametrize("piecewise", [False, True])
def test_requests_reach_the_application(
    request_bytes: bytes, expected: list[bytes], *, piecewise: bool
) -> None:
    """Each request is answered in its order, however its bytes arrive, and the next one begins where it ends."""
    pieces = [bytes([byte]) for byte in request_bytes] if piecewise else [request_bytes]
    found = answers(exchange(echo, *pieces))
    assert found == [(200, body) for body in expected]


REFUSED = {
    # one message, two lengths
    "length and chunks": (
        400,
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "chunks and length": (
        400,
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    ),
    "two lengths": (400, POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    "one length twice": (400, POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "a list of lengths": (400, POST + b"Content-Length: 3, 3\r\n\r\nabc"),
    # lengths that another reader may understand
    "plus": (400, POST + b"Content-Length: +3\r\n\r\nabc"),
    "minus": (400, POST + b"Content-Length: -3\r\n\r\nabc"),
    "hexadecimal": (400, POST + b"Content-Length: 0x3\r\n\r\nabc"),
    "underscore": (400, POST + b"Content-Length: 1_0\r\n\r\nabc"),
    "fraction": (400, POST + b"Content-Length: 3.0\r\n\r\nabc"),
    "no length": (400, POST + b"Content-Length:\r\n\r\nabc"),
    "too large for any machine": (400, POST + b"Content-Length: 99999999999999999999999\r\n\r\n"),
    # codings
    "another coding": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunked is not last": (400, POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "chunked twice": (400, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "two codings": (
        400,
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    ),
    "identity": (400, POST + b"Transfer-Encoding: identity\r\n\r\n"),
    "almost chunked": (400, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "quoted": (400, POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "vertical tab": (400, POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n"),
    "chunks in HTTP/1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    # fields
    "space before a colon": (400, POST + b"Content-Length : 3\r\n\r\nabc"),
    "tab before a colon": (400, POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
    "folded line": (400, POST + b"X: a\r\n b\r\n\r\n"),
    "folded first line": (400, b"GET / HTTP/1.1\r\n X: a\r\nHost: example\r\n\r\n"),
    "no colon": (400, POST + b"X\r\n\r\n"),
    "no name": (400, POST + b": a\r\n\r\n"),
    "name with a parenthesis": (400, POST + b"X(: a\r\n\r\n"),
    "zero byte": (400, POST + b"X: a\x00b\r\n\r\n"),
    "zero byte in a name": (400, POST + b"X\x00: a\r\n\r\n"),
    "bare carriage return": (400, POST + b"X: a\rY: b\r\n\r\n"),
    "bare line feed": (400, POST + b"X: a\nContent-Length: 3\r\n\r\nabc"),
    "control character": (400, POST + b"X: a\x01\r\n\r\n"),
    # request line
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, HEAD + b"Host: other\r\n\r\n"),
    "fragment": (400, b"GET /a#b HTTP/1.1\r\nHost: example\r\n\r\n"),
    "space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: example\r\n\r\n"),
    "target of another scheme": (400, b"GET ftp://example/ HTTP/1.1\r\nHost: example\r\n\r\n"),
    "target without a slash": (400, b"GET a HTTP/1.1\r\nHost: example\r\n\r\n"),
    "asterisk for GET": (400, b"GET * HTTP/1.1\r\nHost: example\r\n\r\n"),
    "byte above 127": (400, b"GET /\xc3\xa9 HTTP/1.1\r\nHost: example\r\n\r\n"),
    "HTTP/0.9": (505, b"GET /\r\n\r\n"),
    "HTTP/2": (505, b"GET / HTTP/2.0\r\nHost: example\r\n\r\n"),
    "preface of HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (400, b"GET / HTTP/1.2\r\nHost: example\r\n\r\n"),
    "lower case": (400, b"GET / http/1.1\r\nHost: example\r\n\r\n"),
    "unknown method": (501, b"FETCH / HTTP/1.1\r\nHost: example\r\n\r\n"),
    "proxy": (501, b"CONNECT example:443 HTTP/1.1\r\nHost: example\r\n\r\n"),
    "TLS": (501, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "expectation": (417, POST + b"Expect: more\r\nContent-Length: 3\r\n\r\nabc"),
    # chunks
    "size with a prefix": (400, CHUNKED + b"0x1\r\na\r\n0\r\n\r\n"),
    "size with a sign": (400, CHUNKED + b"+1\r\na\r\n0\r\n\r\n"),
    "size with an underscore": (400, CHUNKED + b"1_0\r\na\r\n0\r\n\r\n"),
    "no size": (400, CHUNKED + b"\r\na\r\n0\r\n\r\n"),
    "size that is too large": (400, CHUNKED + b"fffffffffffffffff\r\na\r\n0\r\n\r\n"),
    "chunk that is longer than its size": (400, CHUNKED + b"1\r\nab\r\n0\r\n\r\n"),
    "chunk that ends with a line feed": (400, CHUNKED + b"1\r\na\n0\r\n\r\n"),
    "size that ends with a line feed": (400, CHUNKED + b"1\na\r\n0\r\n\r\n"),
    "line feed in an extension": (400, CHUNKED + b"1;a\nb\r\na\r\n0\r\n\r\n"),
    "last chunk that ends with a line feed": (400, CHUNKED + b"0\n\n"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(name: str) -> None:
    """The request is refused, the connection ends, and what follows is not taken for a request."""
    status, sent = REFUSED[name]
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: example\r\n\r\n"
    received = exchange(echo, sent + smuggled)
    assert [found for found, _ in answers(received)] == [status]
    assert b"smuggled" not in received
    assert b"Connection: close\r\n" in received


def test_fields_are_those_of_the_client() -> None:
    """Fields reach the application under the names of PEP 3333; one that could pose as another does not."""
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        seen.update(environ)
        return list(echo(environ, start_response))

    sent = POST + (
        b"X-Forwarded-For: 192.0.2.1\r\nX_Forwarded_For: 192.0.2.66\r\nProxy: evil\r\nContent_Length: 99\r\n"
        b"Cookie: a=1\r\nCookie: b=2\r\nAccept: x\r\nAccept: y\r\nContent-Type: text/x\r\nContent-Length: 0\r\n\r\n"
    )
    assert [status for status, _ in answers(exchange(validator(application), sent))] == [200]
    expected = {
        "HTTP_HOST": "example",
        "HTTP_X_FORWARDED_FOR": "192.0.2.1",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_ACCEPT": "x,y",
        "CONTENT_TYPE": "text/x",
        "CONTENT_LENGTH": "0",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_PORT": "4711",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input_terminated": True,
    }
    assert {key: seen.get(key) for key in expected} == expected
    assert "HTTP_PROXY" not in seen


@pytest.mark.parametrize(
    ("sent", "status", "limits"),
    [
        (HEAD + b"X: " + b"a" * 1000 + b"\r\n\r\n", 431, {"limit_head": 500}),
        (b"GET /" + b"a" * 40000, 431, {}),
        (HEAD + b"X: a\r\n" * 100 + b"\r\n", 431, {}),
        (HEAD + b"X: a\r\n" * 9 + b"\r\n", 200, {"limit_fields": 10}),
        (POST + b"Content-Length: 11\r\n\r\n" + b"a" * 11, 413, {"limit_body": 10}),
        (CHUNKED + b"b\r\n" + b"a" * 11 + b"\r\n0\r\n\r\n", 413, {"limit_body": 10}),
        (CHUNKED + b"a\r\n" + b"a" * 10 + b"\r\n0\r\n\r\n", 200, {"limit_body": 10}),
        (CHUNKED + b"1;" + b"a" * 40000 + b"\r\na\r\n0\r\n\r\n", 400, {}),
        (CHUNKED + b"0\r\n" + b"X: a\r\n" * 9000 + b"\r\n", 400, {}),
        (b"\r\n" * 5 + HEAD + b"\r\n", 400, {}),
        (b"GET / HTTP/1.1\r\n", None, {}),
        (HEAD, None, {}),
        (POST + b"Content-Length: 3\r\n\r\nab", 500, {}),
        (CHUNKED + b"3\r\nab", 500, {}),
    ],
)
def test_bounds(sent: bytes, status: int | None, limits: dict[str, Any]) -> None:
    """What is larger than the bounds is refused by its number; what ends too early ends its connection."""
    try:
        received = exchange(echo, sent, **limits)
    except ConnectionError as error:
        received = literal_eval(error.__notes__[0].removeprefix("received: "))
    assert [found for found, _ in answers(received)] == ([] if status is None else [status])


def test_slow_head_is_refused() -> None:
    """A client that begins a head and does not end it within edge_timeout gets 408."""
    import socket
    import threading
    from types import SimpleNamespace

    from prefork.wsgi import handler_for

    ours, theirs = socket.socketpair()
    server = SimpleNamespace(server_address=("127.0.0.1", 1), edge_timeout=0.05)
    with ours, theirs:
        ours.settimeout(10)
        thread = threading.Thread(target=handler_for(echo), args=(theirs, ("a", 1), server))
        thread.start()
        ours.sendall(HEAD)
        assert ours.recv(100).startswith(b"HTTP/1.1 408 ")
        ours.close()
        thread.join()


_NOISE = st.sampled_from(
    [
        *(bytes([byte]) for byte in range(256)),
        b"\r\n",
        b"\r\n\r\n",
        b"Host: a",
        b"0\r\n\r\n",
        b"chunked",
    ]
)


@given(st.lists(_NOISE, max_size=30), st.integers(0, 60))
def test_any_bytes_are_a_head_or_are_refused(noise: list[bytes], at: int) -> None:
    """Whatever bytes stand in a head, it is read or refused with a status, and never any other exception."""
    good = b"POST /p HTTP/1.1\r\nHost: example\r\nContent-Length: 3\r\n"
    data = good[:at] + b"".join(noise) + good[at:] + b"\r\n"
    data = data[: data.find(b"\r\n\r\n") + 4]
    try:
        head = parse_head(data, most_fields=100)
    except RefusedRequest as refusal:
        status, is_read = refusal.status, False
    else:
        status, is_read = 400, head.path.startswith("/") or head.method == "OPTIONS"
    assert is_read or status in {400, 417, 431, 501, 505}


@given(st.binary(max_size=2000), st.lists(st.integers(1, 700), max_size=8), st.data())
def test_chunks_are_decoded_however_they_are_cut(
    body: bytes, sizes: list[int], data: st.DataObject
) -> None:
    """A body in chunks of any sizes, in pieces of any lengths, is what the application reads."""
    chunks, rest = [], body
    for size in [*sizes, len(body)]:
        piece, rest = rest[:size], rest[size:]
        if piece:
            chunks.append(b"%x\r\n%b\r\n" % (len(piece), piece))
    sent = CHUNKED + b"".join(chunks) + b"0\r\n\r\n" + HEAD + b"\r\n"
    cut = data.draw(st.integers(0, len(sent)))
    found = answers(exchange(echo, sent[:cut], sent[cut:]))
    assert found == [(200, b"POST /p " + body), (200, b"GET / ")]
