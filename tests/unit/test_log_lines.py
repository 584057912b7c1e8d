"""Log records as text and as JSON, and how long ones are shortened."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from prefork.cli.log_lines import JsonFormatter, TextFormatter
from prefork.cli.sinks import ATOMIC
from prefork.workers.log import event
from prefork.workers.log import logger as prefork_logger
from tests.support.logs import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


class Caught(logging.Handler):
    """Keeps the records that event() logs."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record."""
        self.records.append(record)


@pytest.fixture
def told() -> Iterator[Callable[..., logging.LogRecord]]:
    """``told(subject, what, **facts)`` returns the record of an event."""
    caught, level = Caught(), prefork_logger.level
    prefork_logger.addHandler(caught)
    prefork_logger.setLevel(logging.INFO)

    def tell(subject: str, what: str, **facts: Any) -> logging.LogRecord:
        event(logging.INFO, subject, what, **facts)
        return caught.records[-1]

    yield tell
    prefork_logger.removeHandler(caught)
    prefork_logger.setLevel(level)


# --- text


def test_events_are_lines_of_their_own_words(told: Callable[..., logging.LogRecord]) -> None:
    """A line of prefork has time, level, subject and facts."""
    line = TextFormatter().format(told("worker slot=3 gen=0 pid=4711", "ready", boot=0.25))
    assert re.fullmatch(f"{TIME} INFO    worker slot=3 gen=0 pid=4711 ready boot=0.25", line)


def test_the_application_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of another logger names the logger and the process."""
    line = TextFormatter().format(record("%d apples", 3, name="shop.stock", process=99))
    assert re.fullmatch(rf"{TIME} INFO    shop\.stock\[99\]: 3 apples", line)


def test_reports_follow_indented(told: Callable[..., logging.LogRecord]) -> None:
    """A report appears once, below its line."""
    text = TextFormatter().format(told("master", "failed", report="Traceback:\n  File x\nE: y\n"))
    assert text.split(" ", 1)[1] == "INFO    master failed\n    Traceback:\n      File x\n    E: y"


def test_exceptions_follow_indented() -> None:
    """A traceback stands indented below the message."""
    try:
        1 / 0  # noqa: B018 - the exception is the point
    except ZeroDivisionError:
        made = record("broken", exc_info=sys.exc_info())
    lines = TextFormatter().format(made).splitlines()
    assert lines[0].endswith(f"app[{os.getpid()}]: broken")
    assert lines[1] == "    Traceback (most recent call last):"
    assert lines[-1] == "    ZeroDivisionError: division by zero"


def test_clients_cannot_forge_lines_or_steer_terminals() -> None:
    """Text after a line break is indented, and control characters are escaped."""
    text = TextFormatter().format(record("got \x1b[2J\r %s", "a\n2026-01-01 forged\x07"))
    first, *rest = text.splitlines()
    assert first.endswith("got \\x1b[2J\\r a")
    assert rest == ["    2026-01-01 forged\\x07"]


def test_records_that_cannot_be_formatted_are_still_told() -> None:
    """A record with a wrong format string is logged as such."""
    assert "app.py:7 cannot be formatted: 'x %d'" in TextFormatter().format(record("x %d", "y"))


# --- JSON


def test_json_has_the_facts(told: Callable[..., logging.LogRecord]) -> None:
    """A JSON line is one object, in which facts keep their types and have an object of their own."""
    made = told("worker slot=1 gen=0 pid=7", "exited", cause="killed(SIGKILL)", age=1.5, pid=3)
    line = JsonFormatter().format(made)
    assert "\n" not in line
    said = json.loads(line)
    assert re.fullmatch(TIME, said.pop("time"))
    assert said == {
        "level": "info",
        "logger": "prefork",
        "pid": os.getpid(),
        "message": "worker slot=1 gen=0 pid=7 exited cause=killed(SIGKILL) age=1.5 pid=3",
        "subject": "worker",
        "event": "exited",
        "facts": {"slot": 1, "gen": 0, "cause": "killed(SIGKILL)", "age": 1.5, "pid": 3},
    }


@pytest.mark.parametrize(
    ("subject", "kind", "names"),
    [
        ("master", "master", None),
        ("master pid=7", "master", {"pid": 7}),
        ("worker slot=1 gen=2 pid=7", "worker", {"slot": 1, "gen": 2, "pid": 7}),
        ("listener tcp://127.0.0.1:80", "listener tcp://127.0.0.1:80", None),
    ],
)
def test_json_has_the_names_of_its_subject(
    told: Callable[..., logging.LogRecord], subject: str, kind: str, names: dict[str, int] | None
) -> None:
    """What names a subject is a number under its own key, and no part of a text."""
    said = json.loads(JsonFormatter().format(told(subject, "ready")))
    assert (said["subject"], said.get("facts")) == (kind, names)


def test_json_line_of_the_access_log_is_no_text_in_json() -> None:
    """A request that is logged as JSON, in a log of JSON, is one object: its facts are no text."""
    facts = {"client": "127.0.0.1:80", "duration": 0.5}
    made = record(json.dumps(facts), name="prefork.access", facts=facts)
    said = json.loads(JsonFormatter().format(made))
    assert (said["message"], said["facts"]) == ("request", facts)


def test_json_reports_are_a_key(told: Callable[..., logging.LogRecord]) -> None:
    """A report of several lines is one value of the JSON object."""
    said = json.loads(JsonFormatter().format(told("master", "failed", report="one\n  two\n")))
    assert said["report"] == "one\n  two"
    assert said["message"] == "master failed"
    assert "facts" not in said


def test_json_of_the_application() -> None:
    """A record of another logger has a message, and its exception becomes the report."""
    error = ValueError("\udcff")
    made = record("x", exc_info=(type(error), error, None), name="shop")
    said = json.loads(JsonFormatter().format(made))
    assert (said["logger"], said["message"]) == ("shop", "x")
    assert said["report"].endswith("ValueError: \udcff")


# --- length


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
@pytest.mark.parametrize(
    "made",
    [
        record("m", report="line\n" * 5000),
        record("m", report="x" * 50_000),
        record("x" * 50_000),
        record("\U0001f600" * 50_000, name="\U0001f600" * 50_000),
        record("m", facts={f"f{n}": "\U0001f600" * 500 for n in range(50)}),
    ],
    ids=["long report", "long line in report", "long line", "wide", "many facts"],
)
def test_records_fit(formatter: Any, made: logging.LogRecord) -> None:
    """Each record fits into one atomic write, ends in a newline and stays readable."""
    rendered = formatter.encoded(made, ATOMIC)
    assert len(rendered) <= ATOMIC
    assert rendered.endswith(b"\n")
    if isinstance(formatter, JsonFormatter):
        assert json.loads(rendered)["level"] == "info"


def test_long_reports_lose_their_middle() -> None:
    """A long report keeps its beginning and its end, and says how many lines are cut."""
    report = "\n".join(["first", *(f"frame {n}" for n in range(5000)), "ValueError: last"])
    lines = TextFormatter().encoded(record("m", report=report), ATOMIC).decode().splitlines()
    assert lines[1] == "    first"
    assert lines[-1] == "    ValueError: last"
    (cut,) = [line for line in lines if "lines cut" in line]
    assert len(lines) - 2 + int(cut.split()[1]) == 5002
