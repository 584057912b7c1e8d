"""One event is one line, of bounded length, whatever its facts contain."""

from __future__ import annotations

import ast
import contextlib
import errno
import logging
import os
import re
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefork.workers import log
from prefork.workers.states import ExitCause, ExitKind
from prefork.workers.text import LONGEST

if TYPE_CHECKING:
    from collections.abc import Iterator


class Caught(logging.Handler):
    """Keeps the records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.append(record)


@pytest.fixture(scope="module")
def caught() -> Iterator[Caught]:
    """Catch what is logged, from debug on."""
    handler, level = Caught(), log.logger.level
    log.logger.addHandler(handler)
    log.logger.setLevel(logging.DEBUG)
    yield handler
    log.logger.setLevel(level)
    log.logger.removeHandler(handler)


def line(caught: Caught, **facts: Any) -> str:
    """Log one event with these facts and return its text."""
    log.event(logging.INFO, "master", "did", **facts)
    return caught.records[-1].getMessage()


def test_line_of_the_documentation(caught: Caught) -> None:
    """Subject, event and facts stand in this order, causes in their own words."""
    log.event(
        logging.ERROR,
        "worker slot=3 gen=2 pid=4711",
        "exited",
        cause=ExitCause(ExitKind.KILLED, 9),
        age=12.3456,
    )
    record = caught.records[-1]

    assert record.getMessage() == (
        "worker slot=3 gen=2 pid=4711 exited cause=killed(SIGKILL) age=12.346"
    )
    assert (record.name, record.levelno) == ("prefork", logging.ERROR)


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        ("7", 7),
        ("0", 0.0),
        ("10", 10.0),
        ("0.25", 0.25),
        ("100", 100.0004),
        ("-1.5", -1.5),
        ("inf", float("inf")),
        ("nan", float("nan")),
        ("None", None),
        ('""', ""),
        ('"two words"', "two words"),
        ('" "', " "),
        ("äöü€", "äöü€"),
        (r"a\nb", "a\nb"),
        (r"a\\nb", r"a\nb"),
        (r'"a\\\" b"', r"a\" b"),
        (r"a\r\nb", "a\r\nb"),
        (r"\x1b[2J", "\x1b[2J"),
        (r"\x00", "\0"),
        (r"\u2028", "\u2028"),
        (r"\udc80", "\udc80"),
        (r"\u202e", "\u202e"),
    ],
)
def test_values(caught: Caught, shown: str, value: object) -> None:
    """Numbers are short, text with spaces is quoted, and what could steer a terminal is escaped."""
    assert line(caught, fact=value) == f"master did fact={shown}"


@pytest.mark.parametrize(
    ("shown", "error"),
    [
        ('"EMFILE: Too many open files"', OSError(errno.EMFILE, "Too many open files")),
        ('"ENOENT: No such file or directory"', FileNotFoundError(errno.ENOENT, "No such file or directory", "/x")),
        ('"99999: odd"', OSError(99999, "odd")),
        ('"no number"', OSError("no number")),
        (r'"EPERM: a\nb"', OSError(errno.EPERM, "a\nb")),
        ('"EOF occurred in violation of protocol"', ssl.SSLEOFError(8, "EOF occurred in violation of protocol")),
        ('"Unknown host"', socket.herror(1, "Unknown host")),
        ('"Name or service not known"', socket.gaierror(-2, "Name or service not known")),
    ],
)  # fmt: skip
def test_system_errors(caught: Caught, shown: str, error: OSError) -> None:
    """An OSError is shown as ERRNO: text, in one line; without ERRNO where the number is not one of the system."""
    assert line(caught, error=error) == f"master did error={shown}"


ANY_VALUE = st.text() | st.floats(allow_nan=True) | st.integers() | st.binary() | st.none()
KEYS = st.from_regex(r"[a-z][a-z_]{0,9}", fullmatch=True).filter(
    lambda key: key not in {"level", "subject", "what", "report"}
)


@given(facts=st.dictionaries(KEYS, ANY_VALUE, max_size=5))
@example(facts={"a": "x\ny", "b": "\x85\x0b\x0c\x1c\u2028\u2029"})
def test_one_event_is_one_line(caught: Caught, facts: dict[str, object]) -> None:
    """No value starts a new line or steers a terminal, and every fact is there under its key."""
    text = line(caught, **facts)

    assert text.splitlines() == [text]
    assert text.isprintable()
    assert all(f" {key}=" in text for key in facts)
    assert caught.records[-1].facts == {"subject": "master", "event": "did", **facts}  # type: ignore[attr-defined]


# --- reporting never ends what it reports on


class RudeError(Exception):
    """An exception that cannot be shown as text."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class UntouchableError(Exception):
    """An exception whose attributes raise, too."""

    def __getattribute__(self, name: str) -> object:
        if name in {"__cause__", "__notes__", "errno"}:
            raise RuntimeError("hands off")
        return super().__getattribute__(name)


class Raising(logging.Handler):
    """Raises from where logging lets an exception through: a filter, or handle() itself."""

    def __init__(self, *, by_filter: bool) -> None:
        super().__init__()
        if by_filter:
            self.addFilter(self._refuse)
        else:
            self.handle = self._refuse  # type: ignore[method-assign, assignment]

    def _refuse(self, record: logging.LogRecord) -> bool:
        raise TypeError("no such key")


@contextlib.contextmanager
def logging_with(*handlers: logging.Handler, **attributes: object) -> Iterator[None]:
    """Exchange the handlers and attributes of the logger for a moment; no other logger gets its records."""
    logger = log.logger
    before = {name: getattr(logger, name) for name in ("handlers", "propagate", *attributes)}
    logger.__dict__.update({"handlers": [*handlers], "propagate": False, **attributes})
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logger.__dict__.update(before)
        logger.manager._clear_cache()  # type: ignore[attr-defined]


def errors_only() -> logging.Handler:
    """Return a handler that takes errors and nothing below."""
    handler = Caught()
    handler.setLevel(logging.ERROR)
    return handler


@pytest.mark.parametrize("by_filter", [True, False])
def test_program_whose_logging_raises(capsys: pytest.CaptureFixture[str], by_filter: bool) -> None:
    """An exception of a filter or handler reaches no caller, and the warning reaches standard error."""
    with logging_with(Raising(by_filter=by_filter)):
        log.event(logging.INFO, "master", "started")
        log.event(logging.WARNING, "master", "has reached max_children")
    assert capsys.readouterr().err == (
        "master has reached max_children\n    (logging has failed: TypeError)\n"
    )


def test_logger_that_raises(capsys: pytest.CaptureFixture[str]) -> None:
    """A logger whose level is no number costs its caller nothing, hides no warning, and wants no information."""
    with logging_with(Caught(), level="DEBUG"):
        log.event(logging.INFO, "master", "started")
        log.event(logging.WARNING, "master", "has reached max_children")
        assert not log.is_wanted(log.logger, logging.DEBUG)
    assert capsys.readouterr().err == (
        "master has reached max_children\n    (logging has failed: TypeError)\n"
    )


@pytest.mark.parametrize(
    ("shown", "handlers", "attributes"),
    [
        pytest.param(True, [Caught()], {"disabled": True}, id="disabled by dictConfig()"),
        pytest.param(True, [errors_only()], {}, id="no handler for warnings"),
        pytest.param(True, [], {}, id="no handler at all"),
        pytest.param(False, [Caught()], {}, id="a handler takes it"),
        pytest.param(False, [logging.NullHandler()], {}, id="silenced by a NullHandler"),
        pytest.param(False, [Caught()], {"level": logging.CRITICAL}, id="silenced by the level"),
        pytest.param(False, [Caught()], {"disabled": True, "level": logging.CRITICAL}, id="both"),
    ],
)
def test_warning_that_no_handler_shows_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str],
    shown: bool,
    handlers: list[logging.Handler],
    attributes: dict[str, object],
) -> None:
    """Only the program's own decision hides a warning; an information is hidden by anything."""
    with logging_with(*handlers, **attributes):
        log.event(logging.INFO, "master", "started")
        log.event(logging.WARNING, "master", "did")
    assert capsys.readouterr().err == ("master did\n" if shown else "")


def test_logging_disabled_as_a_whole_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """After logging.disable() nothing goes to standard error, although the logger is disabled, too."""
    logging.disable(logging.CRITICAL)
    try:
        with logging_with(disabled=True):
            log.event(logging.ERROR, "master", "did")
    finally:
        logging.disable(logging.NOTSET)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [RudeError(), UntouchableError("x")])
def test_exception_that_cannot_be_shown(caught: Caught, error: Exception) -> None:
    """An exception whose own methods raise is logged by its type, as a report and as a fact."""
    log.failure(logging.ERROR, "worker", "failed", error, why=error)
    text = caught.records[-1].getMessage()
    assert text.startswith("worker failed why=")
    assert text.count(type(error).__name__) >= 1


def test_report_steers_no_terminal(caught: Caught) -> None:
    """Neither the text nor record.report has a character that a terminal obeys; lines stay lines."""
    log.event(logging.ERROR, "worker", "failed", report="one\n\x1b[2Jtwo\r\nthree\u2028four\udcff")
    record = caught.records[-1]
    assert record.getMessage() == (
        "worker failed\n    one\n    \\x1b[2Jtwo\n    three\n    four\\udcff"
    )
    assert record.report == "one\n\\x1b[2Jtwo\nthree\nfour\\udcff"  # type: ignore[attr-defined]


def test_report_is_bounded(caught: Caught) -> None:
    """Of a report of megabytes the beginning and the end are logged."""
    log.event(logging.ERROR, "worker", "failed", report="first " + "m" * 5_000_000 + " last")
    text = caught.records[-1].getMessage()
    assert len(text) < log.LONGEST_REPORT + 200
    assert "    first m" in text
    assert text.endswith("m last")
    assert "characters left out" in text


@pytest.mark.parametrize("stream", ["none", "closed", "full"])
def test_standard_error_that_takes_nothing(monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    """Without a standard error, and with one that nothing reads, the record is lost and nothing waits."""
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "w", encoding="utf-8") as pipe:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while stream == "full":
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
        if stream == "closed":
            pipe.close()
        monkeypatch.setattr(sys, "stderr", None if stream == "none" else pipe)
        with logging_with(disabled=True):
            log.event(logging.ERROR, "master", "did")


def test_cut_facts_say_so(caught: Caught) -> None:
    """A fact that is too long ends with an ellipsis; one that just fits is whole."""
    assert line(caught, fact="x" * LONGEST) == "master did fact=" + "x" * LONGEST
    assert line(caught, fact="x" * (LONGEST + 1)) == "master did fact=" + "x" * LONGEST + "…"
    assert len(line(caught, fact="\x1b" * LONGEST)) <= len("master did fact=") + LONGEST + 1


def test_floats_are_bounded(caught: Caught) -> None:
    """A number is no longer than any other fact."""
    assert len(line(caught, fact=1e308)) <= len("master did fact=") + LONGEST + 1


HOSTILE = st.text(st.sampled_from('ab \\"=\n\x1b') | st.characters(), max_size=19)


@given(client=HOSTILE, identity=HOSTILE)
@example(client='x" cause="retired', identity="")
@example(client='z\\" client=10.0.0.1 identity="CN=root', identity="ends with a backslash \\")
@example(client=r"a\nb", identity="a\nb")
def test_facts_can_be_read_back(caught: Caught, client: str, identity: str) -> None:
    """A client that chooses its name cannot add facts to the line: a reader gets back each value as it was."""
    text = line(caught, client=client, identity=identity, cause="killed(SIGKILL)")

    facts = re.fullmatch(
        r'master did client=("(?:[^"\\]|\\.)*"|[^" =]+) identity=("(?:[^"\\]|\\.)*"|[^" =]+) cause=\S+',
        text,
    )
    assert facts is not None
    assert [read_back(value) for value in facts.groups()] == [client, identity]


def read_back(value: str) -> str:
    """Return the text that a value of a line stands for."""
    inner = value[1:-1] if value.startswith('"') else value
    return re.sub(
        r"\\(?:x..|u.{4}|U.{8}|.)", lambda found: ast.literal_eval(f'"{found[0]}"'), inner
    )


def test_percent_signs_are_text(caught: Caught) -> None:
    """What looks like a format in a fact is not taken for one."""
    assert line(caught, fact="%s%d%(x)s") == "master did fact=%s%d%(x)s"


# --- reports


def test_report_is_indented(caught: Caught) -> None:
    """A report follows the line, each of its lines indented, so that every event begins at the margin."""
    text = line(caught, report="Thread 0x1\n  File x\r\n\x0cmaster forged\n\n")

    assert text.splitlines()[0] == "master did"
    assert all(below.startswith("    ") or not below for below in text.splitlines()[1:])
    assert text.count("\n") == 4
    assert caught.records[-1].report.startswith("Thread 0x1")  # type: ignore[attr-defined]


@given(report=st.text())
def test_no_line_of_a_report_stands_at_the_margin(caught: Caught, report: str) -> None:
    """Whatever a report contains, only the event's own line begins at the margin."""
    first, *rest = line(caught, report=report).splitlines()

    assert first == "master did"
    assert [below for below in rest if not below.startswith("    ")] == []


def test_failures_bear_their_traceback(caught: Caught) -> None:
    """A failure is an event with the traceback of its exception as report, causes included."""
    try:
        try:
            raise KeyError("inner")  # noqa: TRY301 - its traceback is wanted
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        log.failure(logging.ERROR, "master", "hook() raised", error, hook="on_exit")
    record = caught.records[-1]

    assert record.getMessage().startswith("master hook() raised hook=on_exit\n    Traceback")
    assert "    KeyError: 'inner'" in record.getMessage()
    assert record.getMessage().endswith("    ValueError: outer")
    assert record.exc_info is None


def test_unwanted_events_cost_nothing(caught: Caught) -> None:
    """Below the level of the logger no fact is even turned into text."""

    class Costly:
        def __str__(self) -> str:
            raise AssertionError("was shown")

    log.logger.setLevel(logging.WARNING)
    try:
        seen = len(caught.records)
        log.event(logging.DEBUG, "master", "did", fact=Costly())
        assert len(caught.records) == seen
    finally:
        log.logger.setLevel(logging.DEBUG)
