"""The line of the access log: what stands in it, and that nothing a client chooses can break it."""

from __future__ import annotations

import json
import logging
import os
import re
import socketserver
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
