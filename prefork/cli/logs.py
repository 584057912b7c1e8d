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
import logging
import os

from prefork.cli.log_lines import FORMATTERS, LineFormatter, TextFormatter
from prefork.cli.sinks import ATOMIC, sink_for


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
        self._sink = sink_for(fd)
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
