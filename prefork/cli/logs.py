"""The command line's log: text or JSON lines on standard error, written so that nothing ever waits.

A log that nobody reads must not stop a master from accepting, reaping or stopping (gunicorn froze
at 875 requests behind a full pipe). So ``NonBlockingHandler`` never blocks: what does not fit is
dropped and counted, and one line tells how many were lost once there is a reader again.

Standard error is the only sink, so there is no file to reopen after a rotation: whoever
redirected it (systemd, a container runtime, ``| rotatelogs``) rotates it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import socket
import stat
import time
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from prefork.workers.text import escaped, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ATOMIC: Final = select.PIPE_BUF
"""Bytes that a pipe takes whole or not at all (pipe(7)); so lines of several workers never mix."""

LONGEST: Final = 65_536
"""Bytes of a record in a regular file, where every append is whole."""

_INDENT = "    "
_CUT = "... {} lines cut ..."


# --- what a record says --------------------------------------------------------------------------


class _Entry(msgspec.Struct, frozen=True):
    """A log record in parts: one line, a report (traceback, stack dump) and facts for machines."""

    line: str
    report: str
    facts: dict[str, Any]

    @classmethod
    def of(cls, record: logging.LogRecord) -> _Entry:
        line, _, more = _message(record).partition("\n")
        # event() puts its report below its line and gives it along, too; of other records, what
        # follows the first line of the message is a report as good as any.
        reports = [getattr(record, "report", None) or more]
        if record.exc_info:
            reports.append("".join(traceback.format_exception(*record.exc_info)))
        elif record.exc_text:  # a record that came through a queue
            reports.append(record.exc_text)
        if record.stack_info:
            reports.append(record.stack_info)
        report = "\n".join(str(part).rstrip() for part in reports if part)
        return cls(printable(line), report, _facts(record))

    def within(self, limit: int, render: Callable[[_Entry], str]) -> bytes:
        """Render in at most ``limit`` bytes, leaving out as little as needed."""
        rendered = b""
        for entry in self._ever_smaller():
            rendered = render(entry).encode("utf-8", "backslashreplace")
            if len(rendered) <= limit:
                break
        return rendered

    def _ever_smaller(self) -> Iterator[_Entry]:
        """First the report loses its middle, then the facts go, then the line loses its end."""
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
        return f"log record of {record.pathname}:{record.lineno} cannot be formatted: {record.msg!r:.200}"


def _shortened(report: str, size: int) -> str:
    """Keep a third from the start and two thirds from the end, where a traceback tells most."""
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
    """Turns a record into its whole bytes, newline included, within a limit."""

    def encoded(self, record: logging.LogRecord, limit: int) -> bytes:
        """Give the bytes of one record, at most ``limit`` of them."""


class TextFormatter(logging.Formatter):
    """Lines for people; a report follows its line, indented.

    Such as::

    2026-11-21T04:30:12.345Z INFO    worker slot=3 gen=0 pid=4711 ready
    2026-11-21T04:30:13.001Z WARNING myapp[4711]: what the application logs
    """

    def encoded(self, record: logging.LogRecord, limit: int) -> bytes:
        """Give the bytes of one record, at most ``limit`` of them."""
        # prefork's own lines say who speaks; those of the application do not.
        name = escaped(record.name)[:80]
        speaker = "" if name == "prefork" else f"{name}[{record.process}]: "
        start = f"{_time(record)} {record.levelname:<7} {speaker}"
        if name == "prefork.access" and _message(record).startswith("{"):
            start = ""  # a line of the access log for machines has its own time, and stands alone

        def render(entry: _Entry) -> str:
            below = (_INDENT + printable(line) for line in entry.report.splitlines())
            return "\n".join([start + entry.line, *below, ""])

        return _Entry.of(record).within(limit, render)

    def format(self, record: logging.LogRecord) -> str:
        """Give the text of one record, without the last newline."""
        return self.encoded(record, LONGEST).decode().removesuffix("\n")


class JsonFormatter(logging.Formatter):
    """One JSON object per line.

    Keys: time, level, logger, pid, message, and where the record has them subject, event, facts
    and report.
    """

    def encoded(self, record: logging.LogRecord, limit: int) -> bytes:
        """Give the bytes of one record, at most ``limit`` of them."""
        fixed: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": escaped(record.name)[:80],
            "pid": record.process,
        }

        def render(entry: _Entry) -> str:
            said = {"message": entry.line, **entry.facts}
            if entry.report:
                said["report"] = entry.report
            return json.dumps(fixed | said) + "\n"

        return _Entry.of(record).within(limit, render)

    def format(self, record: logging.LogRecord) -> str:
        """Give the text of one record, without the newline."""
        return self.encoded(record, LONGEST).decode().removesuffix("\n")


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """Split what event() gave along; facts stand in an object of their own, away from our keys."""
    given = getattr(record, "facts", None)
    if not isinstance(given, dict):
        return {}
    facts = {str(key): _json_value(value) for key, value in given.items()}
    named = {key: facts.pop(key) for key in ("subject", "event") if key in facts}
    return named | ({"facts": facts} if facts else {})


def _json_value(value: object) -> object:
    if value is None or isinstance(value, (bool, int)):
        return value
    return round(value, 6) if isinstance(value, float) else escaped(str(value))


FORMATTERS: Final[dict[str, type[TextFormatter | JsonFormatter]]] = {
    "text": TextFormatter,
    "json": JsonFormatter,
}


# --- the sink ------------------------------------------------------------------------------------


class _Sink:
    """Where bytes go; ``write`` gives how many it took and never waits. limit: bytes of a record."""

    limit = ATOMIC

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, data: bytes) -> int:
        return os.write(self.fd, data)

    def close(self) -> None:
        os.close(self.fd)


class _FileSink(_Sink):
    """A regular file, which never makes a writer wait for a reader.

    Its description stays shared with standard error, and so does its offset: with one of our
    own, what the application prints there would overwrite what we log.
    """

    limit = LONGEST


class _SocketSink(_Sink):
    """A socket, such as journald's; not waiting is asked for per call, its flags are not ours."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._socket = socket.socket(fileno=fd)

    def write(self, data: bytes) -> int:
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        self._socket.close()


class _PolledSink(_Sink):
    """A pipe or terminal that cannot be opened again (it belongs to another user, say).

    Its flags are shared with whoever gave it, so it is asked first. A pipe that says it can be
    written takes one atomic write; only other writers in between could make that one wait.
    """

    def write(self, data: bytes) -> int:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self.fd, data)


def _sink_for(fd: int) -> _Sink | None:
    """Give a sink for what ``fd`` is, on a descriptor of our own; None if it is closed."""
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            return _SocketSink(os.dup(fd))
        if stat.S_ISREG(mode):
            return _FileSink(os.dup(fd))
        return _reopened(fd)
    except OSError:
        return None


def _reopened(fd: int) -> _Sink:
    # O_NONBLOCK is a flag of the open file description, which the shell that started us shares:
    # set on its terminal it would break the shell. Opened again, the flag is ours alone.
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return _Sink(os.open(f"/proc/self/fd/{fd}", flags))
    except OSError:
        return _PolledSink(os.dup(fd))


class NonBlockingHandler(logging.Handler):
    """Writes each record with one write to a descriptor, and drops it rather than wait or fail.

    fd: standard error by default; a closed one makes a handler that drops everything. Nothing
    here raises. Lost records are counted per process, also across a fork, and told in one line
    as soon as something can be written again (then, or in ``flush()``).
    """

    def __init__(self, fd: int = 2, formatter: LineFormatter | None = None) -> None:
        super().__init__()
        self.lines: LineFormatter = formatter if formatter is not None else TextFormatter()
        self.lost = 0
        self._sink = _sink_for(fd)
        self._why = ""
        self._rest = b""
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or count it as lost."""
        self._forget_what_the_parent_owed()
        try:
            written = self._settle() and self._write(self.lines.encoded(record, self._limit))
        except Exception as error:  # noqa: BLE001 - a log must not break what it reports on
            self._why, written = type(error).__name__, False
        if not written:
            self.lost += 1

    def flush(self) -> None:
        """Tell how many records were lost, if that can be written now."""
        self._forget_what_the_parent_owed()
        with contextlib.suppress(Exception):
            self._settle()

    def close(self) -> None:
        """Close the handler's own descriptor; standard error stays open."""
        if self._sink is not None:
            with contextlib.suppress(OSError):
                self._sink.close()
            self._sink = None
        super().close()

    @property
    def _limit(self) -> int:
        return self._sink.limit if self._sink is not None else ATOMIC

    def _settle(self) -> bool:
        """Write what stands before the next record: the rest of a line cut short, then the notice."""
        if self._rest and not self._write_rest():
            return False
        if self.lost == 0:
            return True
        if not self._write(self.lines.encoded(self._notice(), self._limit)):
            return False
        self.lost = 0
        return True

    def _notice(self) -> logging.LogRecord:
        facts = {"subject": "log", "event": "lost lines", "lines": self.lost, "reason": self._why}
        text = f'log lost lines lines={self.lost} reason="{self._why}"'
        record = logging.LogRecord("prefork", logging.WARNING, __file__, 0, text, None, None)
        record.facts = facts
        return record

    def _write(self, data: bytes) -> bool:
        """Write all or nothing, as far as the kernel lets; a rest that was not taken goes first later."""
        if self._sink is None:
            self._why = os.strerror(errno.EBADF)
            return False
        try:
            taken = self._sink.write(data)
        except OSError as error:
            self._why = (
                "nobody reads" if isinstance(error, BlockingIOError) else str(error.strerror)
            )
            return False
        self._rest = data[taken:]
        return True

    def _write_rest(self) -> bool:
        rest, self._rest = self._rest, b""
        if not self._write(rest):
            self._rest = rest
        return not self._rest

    def _forget_what_the_parent_owed(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._rest, self.lost = os.getpid(), b"", 0


def set_up(level: str, form: str, fd: int = 2) -> NonBlockingHandler:
    """Send the root logger to ``fd``, prefork's events and the application's records alike.

    level, form: as the settings ``log_level`` and ``log_format``. Replaces what other handlers
    the root logger has; an application that configures logging when it is loaded has the last word.
    """
    handler = NonBlockingHandler(fd, FORMATTERS[form]())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    return handler


def say(text: str, fd: int = 2, *, patience: float = 1.0) -> None:
    """Write a message for people, such as the last error of a command; raises nothing.

    patience: seconds to wait for a reader in all; an exit must not hang behind a full pipe.
    """
    sink, data = _sink_for(fd), f"{text}\n".encode("utf-8", "backslashreplace")
    by = time.monotonic() + patience
    with contextlib.suppress(OSError):
        while sink is not None and data:
            try:
                data = data[sink.write(data[:ATOMIC]) :]
            except BlockingIOError:
                left = by - time.monotonic()
                poll = select.poll()
                poll.register(sink.fd, select.POLLOUT)
                if left <= 0 or not poll.poll(left * 1000):
                    break
    if sink is not None:
        sink.close()
