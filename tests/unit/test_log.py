"""One event is one line, of bounded length, whatever its facts contain."""

from __future__ import annotations

import errno
import logging
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
    ],
)  # fmt: skip
def test_system_errors(caught: Caught, shown: str, error: OSError) -> None:
    """An OSError is shown as ERRNO: text, by name where it has one, in one line."""
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


def test_cut_facts_say_so(caught: Caught) -> None:
    """A fact that is too long ends with an ellipsis; one that just fits is whole."""
    assert line(caught, fact="x" * LONGEST) == "master did fact=" + "x" * LONGEST
    assert line(caught, fact="x" * (LONGEST + 1)) == "master did fact=" + "x" * LONGEST + "…"
    assert len(line(caught, fact="\x1b" * LONGEST)) <= len("master did fact=") + LONGEST + 1


def test_floats_are_bounded(caught: Caught) -> None:
    """A number is no longer than any other fact."""
    assert len(line(caught, fact=1e308)) <= len("master did fact=") + LONGEST + 1


@pytest.mark.parametrize("path", ['x" cause="retired', 'x" cause=retired y="'])
def test_no_value_can_pose_as_a_fact(caught: Caught, path: str) -> None:
    """A client that names its socket so cannot add facts to the line: its quotes are marked as its own."""
    text = line(caught, client=path, cause="killed(SIGKILL)")

    assert text.count('"') - text.count('\\"') == 2


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
