"""Log records as lines, as text for people or as JSON, within a limit of bytes (pure).

A pipe takes up to 4096 bytes as a whole, so that lines of several workers do not mix. A record has
to fit into them. A longer record loses what matters least: first the middle of its report (a
traceback or a dump of stacks), then the report, then its facts, and at last the end of its line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec

from prefork.workers.log import traceback_of
from prefork.workers.text import escaped, printable, text_of

LONGEST: Final = 65_536
"""The most bytes of one record where every write is a whole one, as in a regular file."""

_NAME = re.compile(r"[a-z]+=\d+")
"""A word of a subject that names it: ``slot=3``."""

_INDENT = "    "
_CUT = "... {} lines cut ..."


class _Entry(msgspec.Struct, frozen=True):
    """A log record in parts: one line, a report of many lines (traceback, stacks), and facts for programs."""

    line: str
    report: str
    facts: dict[str, Any]

    @classmethod
    def of(cls, record: logging.LogRecord) -> _Entry:
        line, _, more = _message(record).partition("\n")
        # event() puts the report below the line, and also into the record. Of all other records the
        # lines after the first one are taken as a report.
        reports = [getattr(record, "report", None) or more]
        if record.exc_info:
            error = record.exc_info[1]
            reports.append("" if error is None else traceback_of(error))
        elif record.exc_text:  # a record that came through a queue
            reports.append(record.exc_text)
        if record.stack_info:
            reports.append(record.stack_info)
        report = "\n".join(str(part).rstrip() for part in reports if part)
        return cls(printable(line), report, _facts(record))

    def within(self, limit: int, render: Callable[[_Entry], str]) -> bytes:
        """Return the bytes of the record, at most ``limit`` of them, with as little left out as possible."""
        rendered = b""
        for entry in self._ever_smaller():
            rendered = render(entry).encode("utf-8", "backslashreplace")
            if len(rendered) <= limit:
                break
        return rendered

    def _ever_smaller(self) -> Iterator[_Entry]:
        """Yield the record in ever shorter forms, in the order that the module's docstring gives."""
        yield self
        size = len(self.report) // 2
        while size >= 80:
            yield _Entry(self.line, _shortened(self.report, size), self.facts)
            size //= 2
        yield _Entry(self.line, "", self.facts)
        line = self.line
        while line:
            yield _Entry(line + "..." * (line != self.line), "", {})
            line = line[: len(line) // 2]


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a wrong format string of the application, or a __str__ that raises
        what = repr(record.msg) if isinstance(record.msg, str) else text_of(record.msg)
        return f"log record of {record.pathname}:{record.lineno} cannot be formatted: {what:.200}"


def _shortened(report: str, size: int) -> str:
    """Return the report without its middle.

    Two thirds of what is kept are from the end, which says most.
    """
    lines = report.splitlines()
    head = _fitting(lines, size // 3)
    tail = _fitting(lines[::-1], size - size // 3)[::-1]
    return "\n".join([*head, _CUT.format(len(lines) - len(head) - len(tail)), *tail])


def _fitting(lines: list[str], size: int) -> list[str]:
    kept = []
    for line in lines:
        size -= len(line) + 1
        if size < 0:
            break
        kept.append(line)
    return kept


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class LineFormatter(Protocol):
    """What turns a record into bytes."""

    def encoded(self, record: logging.LogRecord, limit: int) -> bytes:
        """Return the bytes of one record with its newline, at most ``limit`` of them."""


class TextFormatter(logging.Formatter):
    """Lines for people. A report follows its line and is indented.

    Two examples::

    2026-11-21T04:30:12.345Z INFO    worker slot=3 gen=0 pid=4711 ready
    2026-11-21T04:30:13.001Z WARNING myapp[4711]: what the application logs
    """

    def encoded(self, record: logging.LogRecord, limit: int) -> bytes:
        """Return the bytes of one record with its newline, at most ``limit`` of them."""
        if getattr(record, "is_whole", False):
            # A line of the access log in a format that other programs read: nothing stands before it. There is
            # one for each request, and nearly all of them fit. So nothing is made here that only a cut needs.
            line = f"{printable(_message(record))}\n".encode("utf-8", "backslashreplace")
            return line if len(line) <= limit else _Entry.of(record).within(limit, _bare)
        # The lines of prefork begin with their subject. Those of the application get the logger's
        # name.
        name = escaped(record.name)[:80]
        speaker = "" if name == "prefork" else f"{name}[{record.process}]: "
        start = f"{_time(record)} {record.levelname:<7} {speaker}"

        def render(entry: _Entry) -> str:
            below = (_INDENT + printable(line) for line in entry.report.splitlines())
            return "\n".join([start + entry.line, *below, ""])

        return _Entry.of(record).within(limit, render)

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of one record without the last newline."""
        return self.encoded(record, LONGEST).decode().removesuffix("\n")


def _bare(entry: _Entry) -> str:
    return f"{entry.line}\n"


class JsonFormatter(logging.Formatter):
    """One JSON object on each line.

    Keys: ``time``, ``level``, ``logger``, ``pid``, ``message``, and where the record has them
    ``subject``, ``event``, ``facts`` and ``report``.
    """

    def encoded(self, record: logging.LogRecord, limit: int) -> bytes:
        """Return the bytes of one record with its newline, at most ``limit`` of them."""
        fixed: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": escaped(record.name)[:80],
            "pid": record.process,
        }

        # A JSON line of the access log has its facts twice otherwise, once of them as text.
        is_access = record.name == "prefork.access" and hasattr(record, "facts")
        line = "request" if is_access else ""

        def render(entry: _Entry) -> str:
            said = {"message": line or entry.line, **entry.facts}
            if entry.report:
                said["report"] = entry.report
            return json.dumps(fixed | said) + "\n"

        return _Entry.of(record).within(limit, render)

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of one record without the newline."""
        return self.encoded(record, LONGEST).decode().removesuffix("\n")


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """Return the keys that ``event()`` adds to a record.

    The facts stand in an object of their own, so that a fact called ``level`` replaces nothing. What
    names the subject, such as the slot of a worker, is a fact, too.
    """
    given = getattr(record, "facts", None)
    if not isinstance(given, dict):
        return {}
    facts = {str(key): _json_value(value) for key, value in given.items()}
    named = {key: facts.pop(key) for key in ("subject", "event") if key in facts}
    if "subject" in named:
        named["subject"], names = _parts(str(named["subject"]))
        facts = names | facts
    return named | ({"facts": facts} if facts else {})


def _parts(subject: str) -> tuple[str, dict[str, Any]]:
    """Return what kind of thing a subject is, and what names it: ``worker``, {"slot": 3, …}."""
    words = subject.split(" ")
    names = [word for word in words if _NAME.fullmatch(word)]
    pairs = (word.split("=") for word in names)
    kind = " ".join(word for word in words if word not in names)
    return kind, {key: int(value) for key, value in pairs}


def _json_value(value: object) -> object:
    if value is None or isinstance(value, (bool, int)):
        return value
    return round(value, 6) if isinstance(value, float) else escaped(text_of(value))


FORMATTERS: Final[dict[str, type[TextFormatter | JsonFormatter]]] = {
    "text": TextFormatter,
    "json": JsonFormatter,
}
