"""Clients that leave or say nothing: which exceptions they cause, where those were raised, how often the log has a line."""

from __future__ import annotations

import logging
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefork.workers.slot_writer import Outcome
from prefork.workers.worker.clients import LostClients, is_clients_doing, outcome_of, place_of

if TYPE_CHECKING:
    from collections.abc import Callable


def silence() -> None:
    """Wait for a client that says nothing."""
    left, right = socket.socketpair()
    with left, right, left.makefile("rb") as lines:
        left.settimeout(0.01)
        lines.readline()


def departure() -> None:
    """Write to a client that has gone."""
    left, right = socket.socketpair()
    right.close()
    with left:
        left.sendall(b"x")


def caught(raising: Callable[[], None]) -> BaseException:
    """Return what is raised."""
    try:
        raising()
    except OSError as error:
        return error
    raise AssertionError("raised nothing")


@pytest.mark.parametrize(
    ("error", "clients"),
    [
        (TimeoutError("timed out"), True),
        (BrokenPipeError(32, "Broken pipe"), True),
        (ConnectionResetError(104, "reset"), True),
        (ConnectionAbortedError(103, "aborted"), True),
        (ConnectionRefusedError(111, "refused"), False),
        (OSError(5, "Input/output error"), False),
        (ValueError("bug"), False),
        (EOFError(), False),
    ],
)
def test_whose_doing(error: BaseException, clients: bool) -> None:
    """A connection that ends and a silence are a client's; a refused connection is no client's."""
    assert is_clients_doing(error) is clients


@pytest.mark.parametrize(
    ("error", "clients"),
    [
        (ssl.SSLEOFError(8, "EOF occurred"), True),
        (ssl.SSLZeroReturnError(6, "closed"), True),
        (ssl.SSLError(1, "tlsv1 alert unknown ca"), True),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), False),
        (OSError(5, "Input/output error"), False),
    ],
)
def test_whose_doing_with_tls(error: BaseException, clients: bool) -> None:
    """What ends an encrypted connection is its client's doing; the same error of another one is the handler's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    left, right = socket.socketpair()
    wrapped = context.wrap_socket(left, server_side=True, do_handshake_on_connect=False)
    with right, wrapped:
        assert is_clients_doing(error, wrapped) is clients
        assert not is_clients_doing(error, right)


@pytest.mark.parametrize("raising", [silence, departure])
def test_place_is_in_the_handlers_code(raising: Callable[[], None]) -> None:
    """The place names the line that read or wrote, not socket.py, in which every read ends."""
    file, _, line = place_of(caught(raising)).rpartition(":")
    assert file == __file__
    text = Path(__file__).read_text().splitlines()[int(line) - 1]
    assert "readline" in text or "sendall" in text


@pytest.mark.parametrize(
    ("timeout", "error", "outcome"),
    [
        (0.5, TimeoutError("timed out"), Outcome.CLIENT_TIMEOUT),
        (None, TimeoutError("timed out"), Outcome.ERROR),
        (0.5, ConnectionResetError(104, "reset"), Outcome.ERROR),
        (0.5, ValueError("bug"), Outcome.ERROR),
    ],
)
def test_outcome_of_a_request_that_raised(
    timeout: float | None, error: BaseException, outcome: Outcome
) -> None:
    """A TimeoutError is the client's where its connection has a timeout; every other end is an error."""
    with socket.socket() as request:
        request.settimeout(timeout)
        assert outcome_of(request, error) is outcome


def test_datagram_has_no_client_timeout() -> None:
    """A datagram has no connection to wait on, so a TimeoutError is the handler's own."""
    assert outcome_of((b"datagram", None), TimeoutError()) is Outcome.ERROR


def test_place_of_what_was_never_raised() -> None:
    """An exception without a traceback has no place, and that is no error."""
    assert place_of(TimeoutError()) == "unknown:0"


def note_many(caplog: pytest.LogCaptureFixture, level: int) -> list[logging.LogRecord]:
    """Lose 1000 clients in a tenth of a second and one more two seconds later; return the records."""
    now = 50.0
    lost = LostClients(lambda: now)
    with caplog.at_level(level, "prefork"):
        for _ in range(1000):
            lost.note("worker", caught(departure), "127.0.0.1:1")
            now += 0.0001
        now += 2
        lost.note("worker", TimeoutError("timed out"), "127.0.0.1:2")
    return caplog.records


def test_a_thousand_clients_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Within a second there is one line without a traceback, and the next one counts the others."""
    first, last = note_many(caplog, logging.INFO)
    assert (first.levelname, last.levelname) == ("WARNING", "WARNING")
    assert "\n" not in first.getMessage()
    assert "client went away" in first.getMessage()
    assert "others=0" in first.getMessage()
    assert "client timed out" in last.getMessage()
    assert "others=999" in last.getMessage()


def test_debug_has_every_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever wants to know more gets it of every client."""
    records = note_many(caplog, logging.DEBUG)
    assert sum(record.levelno == logging.DEBUG for record in records) == 1001
    assert "Traceback" in records[0].getMessage()
