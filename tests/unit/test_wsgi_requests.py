"""Requests as a client may send them: which of them an application gets to see, and where each one ends."""

from __future__ import annotations

from ast import literal_eval
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.workers.worker.source import CLIENT_TIMEOUT
from prefork.wsgi import handler
from prefork.wsgi.head import RefusedRequest, parse_head
from prefork.wsgi.incoming import ChunkedBody, Incoming
from tests.support.clients import read_all
from tests.support.http_cases import ACCEPTED, CHUNKED, HEAD, POST, REFUSED
from tests.support.http_exchange import answers, connected, exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with what the request was."""
    body = environ["wsgi.input"].read(1 << 24)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} ".encode("latin-1") + body]


CHECKED = validator(echo)


@pytest.mark.parametrize(("request_bytes", "expected"), ACCEPTED)
@pytest.mark.parametrize("piecewise", [False, True])
def test_requests_reach_the_application(
    request_bytes: bytes, expected: list[bytes], *, piecewise: bool
) -> None:
    """Each request is answered in its order, however its bytes arrive, and the next one begins where it ends."""
    pieces = [bytes([byte]) for byte in request_bytes] if piecewise else [request_bytes]
    found = answers(exchange(echo, *pieces))
    assert found == [(200, body) for body in expected]


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(name: str) -> None:
    """The request is refused, the connection ends, and what follows is not taken for a request."""
    status, sent = REFUSED[name]
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: example\r\n\r\n"
    received = exchange(echo, sent + smuggled)
    assert [found for found, _ in answers(received)] == [status]
    assert b"smuggled" not in received
    assert b"Connection: close\r\n" in received


def test_request_about_the_server_has_no_path() -> None:
    """``OPTIONS *`` passes the validator of the standard library, which wants no path but one with a slash."""
    sent = b"OPTIONS * HTTP/1.1\r\nHost: example\r\nContent-Length: 0\r\n\r\n"

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["REQUEST_URI"].encode()]

    assert answers(exchange(validator(application), sent)) == [(200, b"*")]


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
    ("target", "host", "seen"),
    [
        ("/", "shop.example:8000", "shop.example:8000"),
        ("/", "[2001:db8::1]:80", "[2001:db8::1]:80"),
        ("/", "my_service", "my_service"),
        ("/", "", ""),
        ("http://shop.example/a", "evil.example", "shop.example"),
        ("https://shop.example:8443?a=http://x/", "evil.example", "shop.example:8443"),
    ],
)
def test_host_of_the_target_counts(target: str, host: str, seen: str) -> None:
    """The application sees the host that the client has asked for; that of a whole URL comes before Host."""
    sent = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAccept: a\r\n\r\n".encode()
    fields = parse_head(sent, most_fields=9).fields
    assert [value for name, value in fields if name == b"host"] == [seen.encode()]
    assert (b"accept", b"a") in fields


@pytest.mark.parametrize(
    ("sent", "status", "limits"),
    [
        (HEAD + b"X: " + b"a" * 2000 + b"\r\n\r\n", 431, {"limit_head": 1024}),
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


class Careless:
    """An application that answers 500 to whatever a read raises, as frameworks do, and the body of its answer.

    begins: the answer begins before the read.
    """

    def __init__(self, *, begins: bool = False) -> None:
        self.begins = begins
        self.closed = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Careless:
        """Answer."""
        if self.begins:
            start_response("200 OK", [])(b"begun")
        try:
            environ["wsgi.input"].read()
        except Exception:  # noqa: BLE001 - as frameworks do
            if not self.begins:
                start_response("500 Oops", [])
        return self

    def __iter__(self) -> Iterator[bytes]:
        """Yield the end of the body."""
        return iter([b"!"])

    def close(self) -> None:
        """Count."""
        self.closed += 1


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize(
    ("chunks", "status", "limits"),
    [(b"b\r\n" + b"a" * 11 + b"\r\n", 413, {"limit_body": 10}), (b"oops\r\n", 400, {})],
)
def test_refusal_goes_before_what_the_application_makes_of_it(
    chunks: bytes, status: int, limits: dict[str, Any], *, begins: bool
) -> None:
    """A body that is refused while it is read is answered by 413 or 400, although the application catches that."""
    application = Careless(begins=begins)
    received = exchange(application, CHUNKED + chunks + b"0\r\n\r\n" + HEAD + b"\r\n", **limits)
    found = answers(received)
    assert found == [(200, b"begun!")] if begins else [one for one, _ in found] == [status]
    assert begins or b"Connection: close\r\n" in received
    assert application.closed == 1


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("sent", [POST + b"Content-Length: 3\r\n\r\nab", CHUNKED + b"3\r\nab"])
def test_body_that_was_given_up_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, *, begins: bool
) -> None:
    """A client that was too slow within its body gets the answer of the application at once, as the last one."""
    monkeypatch.setattr(handler, "UNREAD_TIME", 60.0)
    with connected(Careless(begins=begins), **{CLIENT_TIMEOUT: 0.02}) as client:
        client.sendall(sent)
        received = read_all(client).encode()
    assert [status for status, _ in answers(received)] == [200 if begins else 500]
    assert (b"Connection: close\r\n" in received) is not begins  # known too late


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


class _Pieces:
    """A connection from which these pieces arrive."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [piece for piece in pieces if piece]

    def receive(self, _most: int) -> bytes:
        return self.pieces.pop(0)


def test_body_in_chunks_ends_at_its_empty_line_however_the_stream_is_cut() -> None:
    """Data full of line breaks is the body, and what follows the end is the next request, for every two cuts."""
    body, following = b"\r\n\r\n0\r\n\r\n\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    stream = b"4\r\n\r\n\r\n\r\n6\r\n0\r\n\r\n\n\r\n%b\r\n" + following
    for end in (b"0\r\n", b"0\r\nX: a\r\n"):
        sent = stream % end
        for first in range(len(sent)):
            for second in range(first, len(sent)):
                wire = _Pieces(sent[:first], sent[first:second], sent[second:])
                incoming = Incoming(wire)  # type: ignore[arg-type]
                found = ChunkedBody(incoming, None, 1000, lambda: None).file.read()
                cuts = (sent[:first], sent[first:second])
                assert (found, incoming.ahead + b"".join(wire.pieces)) == (body, following), cuts


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
