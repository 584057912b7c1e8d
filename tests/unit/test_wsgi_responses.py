"""Answers as applications may give them: how each one is framed, and what is refused."""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import time
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest

from prefork.wsgi import ApplicationError, WSGIServer, handler
from tests.support.clients import read_all
from tests.support.http_cases import CHUNKED, HEAD
from tests.support.http_exchange import answers, connected, exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

PLAIN = [("Content-Type", "text/plain")]
OLD = b"GET / HTTP/1.0\r\n\r\n"
OLD_KEPT = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
NEW = HEAD + b"\r\n"
HEAD_ONLY = b"HEAD / HTTP/1.1\r\nHost: example\r\n\r\n"


def answering(
    body: Any, status: str = "200 OK", headers: list[tuple[str, str]] = PLAIN
) -> Callable[..., Any]:
    """Return an application that answers so; a body that is callable makes one."""

    def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response(status, headers)
        return body() if callable(body) else body

    return application


def pieces() -> Iterator[bytes]:
    """Yield a body whose length nobody knows."""
    yield b""
    yield b"one "
    yield b"two"


def of_length(length: int) -> list[tuple[str, str]]:
    """Return fields with a Content-Length."""
    return [*PLAIN, ("Content-Length", str(length))]


@pytest.mark.parametrize(
    ("application", "sent", "framed_by", "body", "keeps"),
    [
        (answering([b"abc"]), NEW, b"Content-Length: 3", b"abc", True),
        (answering([]), NEW, b"Content-Length: 0", b"", True),
        (answering([b"a", b"bc"]), NEW, b"Content-Length: 3", b"abc", True),
        (answering((b"abc",)), NEW, b"Content-Length: 3", b"abc", True),
        (answering(pieces), NEW, b"Transfer-Encoding: chunked", b"one two", True),
        (answering(pieces, headers=of_length(7)), NEW, b"Content-Length: 7", b"one two", True),
        (answering(pieces), OLD, b"Connection: close", b"one two", False),
        (answering(pieces), OLD_KEPT, b"Connection: close", b"one two", False),
        (answering([b"abc"]), OLD_KEPT, b"Connection: keep-alive", b"abc", True),
        (answering([b"abc"]), OLD, b"Connection: close", b"abc", False),
        (answering([b"abc"], headers=of_length(3)), HEAD_ONLY, b"Content-Length: 3", b"", True),
        (answering([]), HEAD_ONLY, b"Date: ", b"", True),
        (answering(pieces), HEAD_ONLY, b"Date: ", b"", True),
        (answering([b"x" * 200_000]), NEW, b"Content-Length: 200000", b"x" * 200_000, True),
        (
            answering(lambda: iter([b"x" * 200_000, b"y"])),
            NEW,
            b"chunked",
            b"x" * 200_000 + b"y",
            True,
        ),
        (answering([], "204 No Content", []), NEW, b"Date: ", b"", True),
        (answering([], "204 No Content", [("Content-Length", "0")]), NEW, b"Date: ", b"", True),
        (answering([], "304 Not Modified", [("ETag", '"a"')]), NEW, b'ETag: "a"', b"", True),
        (
            answering([b"abc"], headers=[*PLAIN, ("Connection", "close")]),
            NEW,
            b"Connection: close",
            b"abc",
            False,
        ),
        (
            answering([b"abc"], headers=[*PLAIN, ("Server", "mine"), ("Date", "today")]),
            NEW,
            b"Server: mine",
            b"abc",
            True,
        ),
        (
            answering([b"abc"], headers=[*PLAIN, ("Transfer-Encoding", "chunked")]),
            NEW,
            b"Content-Length: 3",
            b"abc",
            True,
        ),
    ],
)
def test_answers_are_framed(
    application: Any, sent: bytes, framed_by: bytes, body: bytes, *, keeps: bool
) -> None:
    """The client can tell where each answer ends, and the connection goes on if it can."""
    method = sent.split()[0].decode()
    received = exchange(application, sent + NEW)
    head = received[: received.index(b"\r\n\r\n")]
    assert framed_by in head
    assert head.count(b"\r\nDate: ") == head.count(b"\r\nServer: ") == 1
    found = answers(received, [method])
    assert found[0][1] == body
    assert len(found) == 1 + keeps
    if found[0][0] == 204:
        assert b"Content-Length" not in head


def test_fields_may_have_what_http_allows() -> None:
    """Tabs and characters of Latin-1 are sent as they are, in a status of the application's own as well."""
    received = exchange(
        answering([b""], "299 Gr\xfcn", [("X-One", "a\tb\xe9"), ("X-two", "")]), NEW
    )
    assert received.startswith(b"HTTP/1.1 299 Gr\xfcn\r\nX-One: a\tb\xe9\r\nX-two: \r\n")


def test_fields_may_come_from_an_iterator() -> None:
    """Fields that can be read only once are sent."""
    received = exchange(answering([b""], headers=iter([("X-One", "a")])), NEW)  # type: ignore[arg-type]
    assert b"\r\nX-One: a\r\n" in received


def test_applications_keep_to_the_standard() -> None:
    """The validator of the standard library finds nothing to object to, on either side."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"]
        lines = [body.readline(), body.read(3), *body.readlines(), *body]
        environ["wsgi.errors"].write("a word\n")
        environ["wsgi.errors"].writelines(["and", "another"])
        environ["wsgi.errors"].flush()
        write = start_response("201 Created", PLAIN)
        write(b"written ")
        return iter([b"|".join(lines)])

    sent = b"POST / HTTP/1.1\r\nHost: example\r\nContent-Length: 14\r\n\r\none\ntwo\nthree\n"
    assert answers(exchange(validator(application), sent + NEW)) == [
        (201, b"written one\n|two|\n|three\n"),
        (201, b"written |"),
    ]


def test_lines_of_the_application_are_logged_whole(caplog: pytest.LogCaptureFixture) -> None:
    """A line that is written in pieces is one line of the log, and a line without an end is logged by flush() or at last."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        errors = environ["wsgi.errors"]
        print("a", "b", 42, file=errors)
        print("two\nlines", file=errors)
        errors.write("flushed")
        errors.flush()
        errors.write("x" * 70_000)
        errors.writelines(["without", " an end"])
        start_response("200 OK", PLAIN)
        return []

    exchange(application, NEW)
    said = [record.getMessage().partition(" text=")[2].strip('"') for record in caplog.records]
    assert said.pop(4).startswith("xxx")
    assert said == ["a b 42", "two", "lines", "flushed", "without an end"]


class _Closing:
    def __init__(self, fails_at: int | None = None) -> None:
        self.closed = 0
        self._fails_at = fails_at

    def __iter__(self) -> Iterator[bytes]:
        for number in range(3):
            if number == self._fails_at:
                raise LookupError("no such row")
            yield b"part"

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("fails_at", [None, 0, 1])
def test_close_is_called_once(fails_at: int | None) -> None:
    """What an application returns is closed once, also when it fails; a 500 only replaces what was not sent."""
    body = _Closing(fails_at)
    if fails_at is None:
        received = exchange(answering(body), NEW)
        assert received.endswith(b"4\r\npart\r\n0\r\n\r\n")
    else:
        with pytest.raises(LookupError) as raised:
            exchange(answering(body), NEW + NEW)
        note = raised.value.__notes__[0]
        assert ("HTTP/1.1 500 " in note) == (fails_at == 0)
        assert ("HTTP/1.1 200 " in note) == (fails_at == 1)
        assert "no such row" not in note
        assert "0\\r\\n\\r\\n" not in note.replace("Content-Length: 26", "")[-30:] or fails_at == 0
    assert body.closed == 1


def test_start_response_may_be_called_again_with_an_error() -> None:
    """With exc_info the head is replaced while nothing was sent; afterwards the exception is raised."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        if environ["PATH_INFO"] == "/late":
            yield b"begun"
        try:
            {}["row"]
        except LookupError:
            start_response("503 Busy", PLAIN, sys.exc_info())
        yield b"sorry"

    assert answers(exchange(application, NEW)) == [(503, b"sorry")]
    with pytest.raises(LookupError) as raised:
        exchange(application, b"GET /late HTTP/1.1\r\nHost: example\r\n\r\n")
    assert "begun" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("application", "kind"),
    [
        (answering(["text"]), TypeError),
        (answering(lambda: iter(["text"])), TypeError),
        (answering([b"a"], "200"), ValueError),
        (answering([b"a"], "200 OK\r\nX: y"), ValueError),
        (answering([b"a"], "100 Continue"), ValueError),
        (answering([b"a"], headers=[("X", "a\r\nY: b")]), ValueError),
        (answering([b"a"], headers=[("X", "a\nb")]), ValueError),
        (answering([b"a"], headers=[("X", "a\0b")]), ValueError),
        (answering([b"a"], headers=[("X", "\u20ac")]), ValueError),
        (answering([b"a"], headers=[("X:", "a")]), ValueError),
        (answering([b"a"], headers=[("", "a")]), ValueError),
        (answering([b"a"], headers=[("X", 1)]), TypeError),  # type: ignore[list-item]
        (answering([b"a"], headers=[("Content-Length", "-1")]), ValueError),
        (answering([b"a"], headers=[("Content-Length", "1_0")]), ValueError),
        (answering([b"a"], headers=[*of_length(1), *of_length(1)]), ValueError),
        (lambda _environ, _start: [b"a"], RuntimeError),
        (lambda _environ, _start: iter([b"a"]), RuntimeError),
        (lambda _environ, _start: None, TypeError),
        (lambda _environ: [b"a"], TypeError),
        (lambda _environ, _start: sys.exit(1), SystemExit),
    ],
)
def test_what_is_no_answer_becomes_a_500(application: Any, kind: type[BaseException]) -> None:
    """An answer that would not be one is refused where the application gives it, and the client gets a 500."""
    with pytest.raises(kind) as raised:
        exchange(application, NEW)
    note = raised.value.__notes__[0]
    assert "HTTP/1.1 500 " in note
    assert note.count("HTTP/1.1") == 1


@pytest.mark.parametrize("kind", [TimeoutError, ConnectionResetError, BrokenPipeError])
def test_lost_connection_of_the_application_is_no_lost_client(kind: type[OSError]) -> None:
    """What an application raises of its own connections is answered by 500, and raised as an error of the application."""

    def application(_environ: dict[str, Any], _start_response: Callable[..., Any]) -> list[bytes]:
        raise kind("the database is gone")

    with pytest.raises(ApplicationError, match=f"{kind.__name__}: the database") as raised:
        exchange(application, NEW)
    assert isinstance(raised.value.__cause__, kind)
    assert "HTTP/1.1 500 " in raised.value.__notes__[0]


@pytest.mark.parametrize("end", ["close", "detach"])
@pytest.mark.parametrize(
    "sent", [b"Content-Length: 9\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"]
)
def test_application_may_close_its_input(sent: bytes, end: str) -> None:
    """An application that closes ``wsgi.input`` before it has read the body is no error, and its answer is the last."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        getattr(environ["wsgi.input"], end)()
        start_response("200 OK", [])
        return [b"hello"]

    received = exchange(application, b"POST / HTTP/1.1\r\nHost: a\r\n" + sent)
    assert answers(received) == [(200, b"hello")]


def test_lost_client_is_no_error_of_the_application() -> None:
    """What an application gets from the connection of its client stays what it is."""

    def application(environ: dict[str, Any], _start_response: Callable[..., Any]) -> list[bytes]:
        return [environ["wsgi.input"].read()]

    with pytest.raises(ConnectionError, match="within a body"):
        exchange(application, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc")


@pytest.mark.parametrize(("length", "sent"), [(2, b"ab"), (10, b"abc")])
def test_body_of_another_length_ends_the_connection(length: int, sent: bytes) -> None:
    """A body that is not as long as its Content-Length is an error, and no further answer follows it."""
    with pytest.raises(RuntimeError, match="Content-Length") as raised:
        exchange(answering(lambda: iter([sent[:2], b"c"]), headers=of_length(length)), NEW + NEW)
    assert raised.value.__notes__[0].count("HTTP/1.1") == 1


@pytest.mark.parametrize(
    "body", [[b"abcde"], [b"a"], [], lambda: iter([b"abcde"]), lambda: iter([])]
)
def test_body_whose_first_bytes_show_another_length_becomes_a_500(body: Any) -> None:
    """Nothing is sent of an answer whose length is known to be wrong in time, and the client gets a 500."""
    with pytest.raises(RuntimeError, match="bytes, and its Content-Length is 3") as raised:
        exchange(answering(body, headers=of_length(3)), NEW + NEW)
    note = raised.value.__notes__[0]
    assert "HTTP/1.1 500 " in note
    assert note.count("HTTP/1.1") == 1


def test_application_may_answer_anew_after_a_wrong_length() -> None:
    """The length of the answer that was refused does not count for the next one."""

    def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        write = start_response("200 OK", of_length(3))
        try:
            write(b"abcde")
        except RuntimeError:
            start_response("503 Busy", PLAIN, sys.exc_info())
        return [b"sorry, busy"]

    assert answers(exchange(application, NEW)) == [(503, b"sorry, busy")]


@pytest.mark.parametrize(
    ("application", "sent", "count"),
    [
        (answering([b"abc"]), NEW, 3),
        (answering(pieces), NEW, 7),
        (answering(lambda: iter([b"x" * 200_000, b"y"])), NEW, 200_001),
        (answering([b"x" * 200_000]), NEW, 200_000),
        (answering(pieces), HEAD_ONLY, 0),
        (answering([b"abc"]), HEAD_ONLY, 0),
        (answering([b"abc"], headers=of_length(2)), NEW, 26),
    ],
)
def test_books_have_the_bytes_that_were_sent(
    monkeypatch: pytest.MonkeyPatch, application: Any, sent: bytes, count: int
) -> None:
    """The access log has the bytes of the body that the client gets, which are none for HEAD."""
    reported = []
    monkeypatch.setattr(handler, "report_answer", lambda *facts, **_more: reported.append(facts[2]))
    with contextlib.suppress(RuntimeError):
        exchange(application, sent)
    assert reported == [count]


@pytest.mark.parametrize("where", ["file", "memory"])
@pytest.mark.parametrize("headers", [PLAIN, of_length(5)])
def test_files_are_sent(tmp_path: Path, where: str, headers: list[tuple[str, str]]) -> None:
    """A wrapped file is sent from where it stands to its end, or as far as Content-Length says, and is closed."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 10_000)
    content = path.read_bytes()[3:] if headers is PLAIN else path.read_bytes()[3:8]
    opened: list[Any] = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        source: Any = path.open("rb") if where == "file" else io.BytesIO(path.read_bytes())
        if headers is not PLAIN and where == "memory":
            source = io.BytesIO(path.read_bytes()[:8])
        source.seek(3)
        opened.append(source)
        start_response("200 OK", headers)
        return environ["wsgi.file_wrapper"](source)

    assert answers(exchange(application, NEW + NEW)) == [(200, content)] * 2
    assert [source.closed for source in opened] == [True, True]


def test_file_may_follow_what_was_written(tmp_path: Path) -> None:
    """A wrapped file after write() continues the body that has begun, with one head."""
    path = tmp_path / "file"
    path.write_bytes(b"of a file")

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", PLAIN)(b"written, and ")
        return environ["wsgi.file_wrapper"](path.open("rb"))

    assert answers(exchange(application, NEW + NEW)) == [(200, b"written, and of a file")] * 2


def test_interim_answer_is_sent_when_the_body_is_wanted() -> None:
    """A client that waits for 100 gets it when the application reads, and not when it does not."""
    expecting = (
        b"POST /%s HTTP/1.1\r\nHost: example\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        read = environ["wsgi.input"].read() if environ["PATH_INFO"] == "/read" else b"nothing"
        start_response("200 OK", PLAIN)
        return [read]

    # What is here already needs no interim answer.
    assert not exchange(application, expecting % b"read" + b"abc").startswith(b"HTTP/1.1 100")
    received = exchange(application, expecting % b"read", b"abc")
    assert answers(received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")) == [(200, b"abc")]
    assert b"100 Continue" not in exchange(application, expecting % b"other")
    ignored = exchange(
        application, b"POST /x HTTP/1.1\r\nHost: example\r\nContent-Length: 3\r\n\r\nabc" + NEW
    )
    assert answers(ignored) == [(200, b"nothing")] * 2


def test_answer_announces_that_its_connection_ends_before_the_body() -> None:
    """A connection whose next bytes may be a body or a request ends, and so does one with much unread: the head says it."""
    post = b"POST / HTTP/1.1\r\nHost: example\r\nContent-Length: %d\r\n%b\r\n"
    expect = b"Expect: 100-continue\r\n"
    chunked = CHUNKED.removesuffix(b"\r\n") + expect + b"\r\n"
    for sent, body, keeps in (
        (post % (50, expect), b"", False),
        (chunked, b"", False),
        (post % (300_000, b""), bytes(300_000), False),
        (post % (200_000, b""), bytes(200_000), True),
    ):
        received = exchange(answering([b"refused"], "401 Unauthorized"), sent, body + NEW)
        assert (b"\r\nConnection: close\r\n" in received) is not keeps, sent
        assert answers(received) == [(401, b"refused")] * (1 + keeps), sent


@pytest.mark.parametrize(
    ("fields", "limits", "status"),
    [
        (b" HTTP/1.0\r\n", {}, 200),
        (b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", {}, 200),
        (b" HTTP/1.1\r\nHost: a\r\n", {}, 200),
        (b" HTTP/1.1\r\nHost: a\r\n", {"limit_body": 1000}, 413),
    ],
)
def test_client_that_is_still_sending_sees_the_answer(
    monkeypatch: pytest.MonkeyPatch, fields: bytes, limits: dict[str, object], status: int
) -> None:
    """A body that nobody reads is sent to its end, without a reset, and then the client reads the answer."""
    # The body is larger than what the kernel keeps of a connection, so the server has to read it.
    monkeypatch.setattr(handler, "SILENCE", 10)  # on a machine with much load a client pauses, too
    monkeypatch.setattr(handler, "UNREAD_TIME", 10)
    with connected(answering([b"no"]), **limits) as client:
        client.sendall(b"POST /" + fields + b"Content-Length: 20000000\r\n\r\n" + bytes(20_000_000))
        received = read_all(client)
        client.close()
    assert received.startswith(f"HTTP/1.1 {status} ")


@pytest.mark.parametrize("asks", [b"Connection: close\r\n", b"Expect: 100-continue\r\n"])
def test_silent_client_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, asks: bytes) -> None:
    """A client that leaves out its body costs its worker a moment of silence, and not the time for an unread body."""
    monkeypatch.setattr(handler, "UNREAD_TIME", 1000)
    with connected(answering([b"no"])) as client:
        client.sendall(NEW.replace(b"GET", b"POST")[:-2] + asks + b"Content-Length: 9\r\n\r\n")
        assert read_all(client).endswith("no")


def test_shed_client_is_not_waited_for() -> None:
    """A client that is shed reads 503; one that has sent nothing is not waited for, whatever its timeout."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    with ours, theirs:
        began = time.monotonic()
        WSGIServer.shed_request(None, ours, None)  # type: ignore[arg-type]  # it asks the server nothing
        assert time.monotonic() - began < 3
        assert theirs.recv(1000).startswith(b"HTTP/1.1 503 ")
