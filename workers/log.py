"""The one way in which a line gets into the log: a subject, an event and facts.

A line reads ``worker slot=3 gen=2 pid=4711 exited cause=killed(SIGKILL)``. The record has the same
facts as ``record.facts``, for handlers that write structured lines. Text that a client can choose
is escaped here, so that one event is one line, and neither a line nor a report can steer a terminal.

What is logged is often the reason why something else fails, so a report must not fail with it, and
must not get lost. ``logging`` runs code of the program: filters, handlers, record factories, the
``__str__()`` of exceptions. If any of it raises, the caller learns nothing of it. And a warning or an
error that no handler would show goes to standard error:

- ``logging.config.dictConfig()`` and ``fileConfig()`` disable, with their defaults, every logger that
  exists already. A program imports prefork before it configures logging.
- All handlers may be for higher levels, such as one that sends a mail.
- A filter or a handler may raise.

A level of the logger, ``logging.disable()`` and a ``NullHandler`` are decisions of the program, and hold.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import TextIO

from prefork.workers import system
from prefork.workers.text import fact_value, printable, text_of

logger = logging.getLogger("prefork")

LONGEST_REPORT = 64 * 1024
"""Characters of a traceback that are logged. Messages of exceptions can be of any length."""


def event(level: int, subject: str, what: str, *, report: str = "", **facts: object) -> None:
    """Log one event. Raises nothing.

    subject: the thing to which it happened, such as "master" or "worker slot=3 gen=2 pid=4711".
    what: the event in a few words of lower case, in the past tense or as the present state. report:
    a traceback or a stack dump, which follows the line, indented.
    """
    if not is_wanted(logger, level):
        return
    text = " ".join(
        [subject, what, *(f"{key}={fact_value(_plain(value))}" for key, value in facts.items())]
    )
    lines = [printable(line) for line in _bounded(report.rstrip()).splitlines()]
    emit(
        logger,
        level,
        "\n".join([text, *("    " + line for line in lines)]),
        {"facts": {"subject": subject, "event": what, **facts}, "report": "\n".join(lines)},
    )


def failure(level: int, subject: str, what: str, error: BaseException, **facts: object) -> None:
    """Log an event as ``event()`` does, with the traceback of the exception that caused it."""
    event(level, subject, what, report=traceback_of(error), **facts)


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an exception, also of one whose own methods raise."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception as other:  # noqa: BLE001 - code of the program, by way of attributes
        with contextlib.suppress(Exception):
            frames = "".join(traceback.format_tb(error.__traceback__))
            return f"{frames}{type(error).__name__} (which cannot be shown: {type(other).__name__})"
        return f"{type(error).__name__} (which cannot be shown: {type(other).__name__})"


def flush() -> None:
    """Flush the handlers of the logger. Raises nothing."""
    for handler in logger.handlers:
        with contextlib.suppress(Exception):  # a handler of the program
            handler.flush()


# --- through logging, or past it


def is_wanted(target: logging.Logger, level: int) -> bool:
    """Return whether a record of this level has to be made. Raises nothing.

    Where the logger itself raises, such as one whose level is no number, a warning has to be made: ``emit()``
    finds a way for it.
    """
    try:
        if target.disabled and level >= logging.WARNING:
            return target.manager.disable < level >= target.getEffectiveLevel()
        return target.isEnabledFor(level)
    except Exception:  # noqa: BLE001 - a logger of the program's own
        return level >= logging.WARNING


def emit(target: logging.Logger, level: int, text: str, extra: Mapping[str, object]) -> None:
    """Hand a record to a logger; or write it to standard error if no handler shows it. Raises nothing."""
    problem = ""
    try:
        if level < logging.WARNING or _is_shown(target, level):
            target.log(level, "%s", text, extra=extra)
            return
    except Exception as error:  # noqa: BLE001 - a filter or a handler of the program
        problem = f"\n    (logging has failed: {type(error).__name__})"
    if level >= logging.WARNING:
        _write_to_stderr(text + problem + "\n")


def _is_shown(target: logging.Logger, level: int) -> bool:
    """Return whether a handler takes records of this level, or ``logging`` writes them to standard error itself."""
    if target.disabled:
        return False
    found = False
    one: logging.Logger | None = target
    while one is not None:
        if any(level >= handler.level for handler in one.handlers):
            return True
        found = found or bool(one.handlers)
        one = one.parent if one.propagate else None
    return not found


def _write_to_stderr(text: str) -> None:
    with contextlib.suppress(Exception):  # there is none, or it is closed
        if _has_room(sys.stderr):
            sys.stderr.write(text)
            sys.stderr.flush()


def _has_room(stream: TextIO) -> bool:
    """Return whether a write would not wait for a reader; True where the stream is no file."""
    try:
        fd = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return True
    return system.takes_more(fd)


# --- text


def _bounded(report: str) -> str:
    if len(report) <= LONGEST_REPORT:
        return report
    half = LONGEST_REPORT // 2
    return f"{report[:half]}\n… ({len(report) - 2 * half} characters left out)\n{report[-half:]}"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    with contextlib.suppress(Exception):  # attributes of an exception of the program
        if isinstance(value, OSError) and value.errno:
            if _has_own_numbers(value):
                return str(value.strerror)
            return f"{errno.errorcode.get(value.errno, value.errno)}: {value.strerror}"
    return text_of(value)


def _has_own_numbers(error: OSError) -> bool:
    """Return whether the number of an OSError is not one of the system: name resolution and TLS have their own."""
    if isinstance(error, (socket.gaierror, socket.herror)):
        return True
    ssl = sys.modules.get(
        "ssl"
    )  # without the module there is no such error, and it takes 15 ms to load
    return ssl is not None and isinstance(error, ssl.SSLError)
