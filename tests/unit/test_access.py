"""The line of the access log: what stands in it, and that nothing a client chooses can break it."""

from __future__ import annotations

import json
import logging
import os
import re
import socketserver
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.cli.log_lines import TextFormatter
from prefork.edge.client import client_address
from prefork.workers.answers import Answer
from prefork.workers.listener import Listener
from prefork.workers.slot_writer import Outcome
from prefork.workers.worker.access import AccessLog
from prefork.workers.worker.clients import LONGEST_CLIENT, client_name

if TYPE_CHECKING:
    from collections.abc import Iterator


class Odd:
    """An address of a program's own class."""

    def __str__(self) -> str:
        raise RuntimeError("no name")


def worker(*, is_detached: bool = False) -> Any:
    """Return as much of a slot's writer as the log asks. is_detached: in a process that a handler forked."""
    return SimpleNamespace(is_detached=is_detached)


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Give a listener with a name."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        yield Listener(server)


def line(
    caplog: pytest.LogCaptureFixture, listener: Listener, form: str, address: Any, **more: Any
) -> str:
    """Return the line of one request."""
    given_facts = {"waited_ns": 1_500, "outcome": Outcome.OK, "duration_ns": 12_345_678, **more}
    caplog.clear()
    with caplog.at_level(logging.INFO, "prefork.access"):
        AccessLog(form, 3, 2, worker()).write(listener, address, **given_facts)
    (record,) = caplog.records
    return record.getMessage()


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (("127.0.0.1", 4711), "127.0.0.1:4711"),
        (("::1", 4711, 0, 0), "[::1]:4711"),
        ("/run/client", "/run/client"),
        (b"\0abstract", "@abstract"),
        (b"\0\xff\n", "@\udcff\n"),
        ("", None),
        (b"", None),
        (None, None),
        (Odd(), "<Odd>"),
        (("x" * 1000, 1), "x" * LONGEST_CLIENT),
    ],
)
def test_client_name(address: Any, name: str | None) -> None:
    """A client is named as its family is written, within bounds; one without a name has none."""
    assert client_name(address) == name


def test_text_line(caplog: pytest.LogCaptureFixture, listener: Listener) -> None:
    """A line for people is one of words: who, how long, how it went, and where."""
    assert line(caplog, listener, "text", ("127.0.0.1", 4711)) == (
        "request client=127.0.0.1:4711 duration=0.012346 queue_wait=0.000002 outcome=ok "
        f"slot=3 generation=2 listener={listener}"
    )


def test_json_line(caplog: pytest.LogCaptureFixture, listener: Listener) -> None:
    """A line for machines is an object, in which what is not known is null."""
    text = line(caplog, listener, "json", "", waited_ns=None, outcome=Outcome.REJECTED)
    facts = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", facts.pop("time"))
    assert facts == {
        "client": None,
        "duration": 0.012346,
        "queue_wait": None,
        "outcome": "rejected",
        "slot": 3,
        "generation": 2,
        "listener": str(listener),
    }


WEB = Answer(
    "GET",
    '/a?b="c',
    "HTTP/1.1",
    "200",
    2326,
    referer="https://example/",
    user_agent="curl\\8",
)


@pytest.mark.parametrize(
    ("form", "address", "answer", "expected"),
    [
        ("common", ("192.0.2.7", 1), WEB, r'192.0.2.7 - - [T] "GET /a?b=\"c HTTP/1.1" 200 2326'),
        (
            *("combined", ("::1", 1, 0, 0), WEB),
            r'::1 - - [T] "GET /a?b=\"c HTTP/1.1" 200 2326 "https://example/" "curl\\8"',
        ),
        (
            *("timed", "", Answer(status="503", sent=4)),
            '- - - [T] "-" 503 4 "-" "-" 0.012346 0.000002',
        ),
        (
            *("common", "/run/x", Answer(target="\x16\x03\xe9 a\r\n", status="400")),
            r'/run/x - - [T] "\x16\x03\xe9 a\x0d\x0a" 400 0',
        ),
        (
            *("common", client_address("/c\udcff", "", identity="\ud800"), Answer()),
            r'/c\xff - \xed\xa0\x80 [T] "-" - 0',
        ),
    ],
)
def test_web_lines(
    caplog: pytest.LogCaptureFixture,
    listener: Listener,
    form: str,
    address: Any,
    answer: Answer,
    *,
    expected: str,
) -> None:
    """Lines in the formats of other web servers are theirs byte for byte, and a client cannot leave its field."""
    text = line(caplog, listener, form, address, answer=answer)
    time = re.search(r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\]", text)
    assert time is not None
    assert text.replace(time[0], "[T]") == expected
    assert TextFormatter().format(caplog.records[0]) == text


def test_json_line_of_an_answer(caplog: pytest.LogCaptureFixture, listener: Listener) -> None:
    """An answer of HTTP adds its facts; a client that a proxy has named stands before the peer."""
    answer = msgspec.structs.replace(WEB, client="198.51.100.9")
    facts = json.loads(line(caplog, listener, "json", ("192.0.2.7", 1), answer=answer))
    expected = {
        "client": "198.51.100.9",
        "peer": "192.0.2.7:1",
        "method": "GET",
        "target": '/a?b="c',
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes": 2326,
        "referer": "https://example/",
        "user_agent": "curl\\8",
        "duration": 0.012346,
        "queue_wait": 0.000002,
    }
    assert facts.items() >= expected.items()


@pytest.mark.parametrize("form", ["text", "json", "common", "combined", "timed"])
@pytest.mark.parametrize("character", ["a", '"', "\xe9", "\0"])
def test_line_of_a_long_request_fits_into_a_pipe(
    caplog: pytest.LogCaptureFixture, listener: Listener, form: str, character: str
) -> None:
    """However long target and fields are, and whatever is in them, the line is whole, and a pipe takes it at once."""
    long = character * 9000
    answer = Answer("GET", long, "HTTP/1.1", "200", 1, referer=long, user_agent=long)
    text = line(caplog, listener, form, ("192.0.2.7", 1), answer=answer)
    assert len(text) < 4000
    assert text.isascii()
    assert text.isprintable()
    if form == "json":
        assert json.loads(text)["user_agent"].endswith("…")


def test_connection_without_a_request_has_no_web_line(
    caplog: pytest.LogCaptureFixture, listener: Listener
) -> None:
    """A client that connects and asks nothing has no line in a format for requests; one that is rejected has."""
    log = AccessLog("common", 3, 2, worker())
    with caplog.at_level(logging.INFO, "prefork.access"):
        log.write(listener, ("192.0.2.7", 1), None, Outcome.OK, 1)
        log.write(listener, ("192.0.2.7", 1), None, Outcome.REJECTED, 1)
    (record,) = caplog.records
    assert record.getMessage().endswith(' "-" - 0')


@given(name=st.binary(max_size=108))
@pytest.mark.parametrize("form", ["text", "json"])
def test_hostile_names_stay_within_their_line(form: str, name: bytes) -> None:
    """Whatever bytes a Unix client is called by, its line is printable ASCII, and its facts are read back."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        said: list[str] = []
        logger = logging.getLogger("prefork.access")
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            AccessLog(form, 3, 2, worker()).write(
                Listener(server), b"\0" + name, None, Outcome.ERROR, 1
            )
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
    (text,) = said
    assert text.isascii()
    assert text.isprintable()
    shown = "@" + os.fsdecode(name)
    if form == "json":
        assert json.loads(text)["client"] == shown
        return
    match = re.fullmatch(
        r'request client=("(?:[^"\\]|\\.)*"|[^" =\\]+) duration=\S+ queue_wait=- outcome=error '
        r"slot=3 generation=2 listener=\S+",
        text,
    )
    assert match is not None
    assert (json.loads(match[1]) if match[1].startswith('"') else match[1]) == shown


def test_process_that_a_handler_forked_logs_nothing(
    caplog: pytest.LogCaptureFixture, listener: Listener
) -> None:
    """The request is the worker's, and so is its line."""
    log = AccessLog("text", 3, 2, worker(is_detached=True))
    with caplog.at_level(logging.INFO, "prefork.access"):
        log.write(listener, "", None, Outcome.OK, 1)
    assert caplog.records == []


def test_nothing_is_made_for_a_log_that_is_not_wanted(listener: Listener) -> None:
    """Where the level drops the line, the client is not even asked its name."""
    asked = []

    class Named:
        def __str__(self) -> str:
            asked.append(self)
            return "name"

    assert not logging.getLogger("prefork.access").isEnabledFor(logging.INFO)
    AccessLog("text", 3, 2, worker()).write(listener, Named(), None, Outcome.OK, 1)
    assert asked == []
