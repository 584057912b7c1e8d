"""The one way in which a line gets into the log: a subject, an event and facts.

A line reads ``worker slot=3 gen=2 pid=4711 exited cause=killed(SIGKILL)``. The record has the same
facts as ``record.facts``, for handlers that write structured lines. Text that a client can choose
is escaped here, so that one event is one line.
"""

from __future__ import annotations

import errno
import logging
import traceback

from prefork.workers.text import escaped

logger = logging.getLogger("prefork")


def event(level: int, subject: str, what: str, *, report: str = "", **facts: object) -> None:
    """Log one event.

    subject: the thing to which it happened, such as "master" or "worker slot=3 gen=2 pid=4711".
    what: the event in a few words of lower case, in the past tense or as the present state. report:
    a traceback or a stack dump, which follows the line, indented.
    """
    if not logger.isEnabledFor(level):
        return
    text = " ".join([subject, what, *(f"{key}={_shown(value)}" for key, value in facts.items())])
    if report:
        text = "\n".join([text, *("    " + line for line in report.rstrip().splitlines())])
    logger.log(
        level,
        "%s",
        text,
        extra={"facts": {"subject": subject, "event": what, **facts}, "report": report},
    )


def failure(level: int, subject: str, what: str, error: BaseException, **facts: object) -> None:
    """Log an event as ``event()`` does, with the traceback of the exception that caused it."""
    event(level, subject, what, report="".join(traceback.format_exception(error)), **facts)


def _shown(value: object) -> str:
    if isinstance(value, OSError) and value.errno:
        value = f"{errno.errorcode.get(value.errno, value.errno)}: {value.strerror}"
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    text = escaped(text)
    if text and not set(text) & set(' "='):
        return text
    quoted = text.replace('"', '\\"')
    return f'"{quoted}"'
