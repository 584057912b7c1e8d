"""The log of the command line: text or JSON lines on standard error, written without ever waiting.

A log that is not read must not stop a master from accepting, reaping or stopping. (With gunicorn a
full pipe stops the service after 875 requests.) So ``NonBlockingHandler`` never blocks. A record
that cannot be written is dropped and counted. As soon as something can be written again, one line
says how many records were lost.

Standard error is the only place that the log goes to, so there is no file to reopen after a
rotation. The program that reads standard error rotates it: systemd, a container runtime, or
``rotatelogs`` behind a pipe.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import tomllib
from pathlib import Path

from prefork.cli.log_lines import FORMATTERS, LineFormatter, TextFormatter
from prefork.cli.sinks import ATOMIC, Sink, sink_for
from prefork.workers import forks
from prefork.workers.errors import SettingsError


class NonBlockingHandler(logging.Handler):
    """Writes each record with one ``write()``, and drops a record rather than wait or raise.

    fd: standard error by default. A handler for a closed descriptor drops every record. Lost
    records are counted by each process for itself. One line reports them as soon as something can
    be written again, at the next record or in ``flush()``.

    The kernel may take only a part of a line: a terminal and a TCP socket do so, a pipe does not.
    The rest is kept and written first the next time, so that no line is cut. A forked worker
    inherits the rest and the count, which belong to its parent, and forgets both.

    A closed handler opens its descriptor again for the next record. ``logging.config`` closes all
    handlers that exist, and leaves those of the root logger in use unless the configuration names
    others. Django does this with its default settings when an application is loaded. A
    ``StreamHandler`` also writes on after ``close()``.
    """

    def __init__(self, fd: int = 2, formatter: LineFormatter | None = None) -> None:
        super().__init__()
        self.lines: LineFormatter = formatter if formatter is not None else TextFormatter()
        self.lost = 0
        self._fd = fd
        self._why = ""
        self._rest = b""
        self._pid = os.getpid()
        self._sink: Sink | None = None
        self._is_closed = False
        self._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or count it as lost."""
        self._forget_the_parents_rest()
        if self._is_closed:
            self._open()
        try:
            written = self._settle() and self._write(self.lines.encoded(record, self._limit))
        except Exception as error:  # noqa: BLE001 - a log must not break what it reports on
            self._why, written = type(error).__name__, False
        if not written:
            self.lost += 1

    def flush(self) -> None:
        """Write how many records were lost, if that can be written now."""
        self._forget_the_parents_rest()
        with contextlib.suppress(Exception):
            self._settle()

    def close(self) -> None:
        """Close the handler's own descriptor until the next record. Standard error stays open."""
        if self._sink is not None:
            forks.remove(self._on_list)
            with contextlib.suppress(OSError):
                self._sink.close()
            self._sink, self._is_closed = None, True
        super().close()

    def _open(self) -> None:
        # A descriptor that is not open now is never tried again: its number may be another file's later.
        self._is_closed = False
        self._sink = sink_for(self._fd)
        if self._sink is not None:
            self._on_list = forks.add(self._part_in_child, every_time=True)

    def _part_in_child(self) -> None:
        if self._sink is not None:
            self._sink.part()

    @property
    def _limit(self) -> int:
        return self._sink.limit if self._sink is not None else ATOMIC

    def _settle(self) -> bool:
        """Write what has to stand before the next record, and return whether nothing of it is left.

        That is the rest of a line that was written in part, and then the line about lost records.
        """
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
        """Write a line, and return whether the kernel took any of it.

        What it did not take becomes the rest.
        """
        if self._sink is None:
            self._why = os.strerror(errno.EBADF)
            return False
        try:
            taken = self._sink.write(data)
        except OSError as error:
            self._why = (
                "reader too slow" if isinstance(error, BlockingIOError) else str(error.strerror)
            )
            return False
        self._rest = data[taken:]
        return True

    def _write_rest(self) -> bool:
        rest, self._rest = self._rest, b""
        if not self._write(rest):
            self._rest = rest
        return not self._rest

    def _forget_the_parents_rest(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._rest, self.lost = os.getpid(), b"", 0


def set_up_from(path: str, source: str) -> None:
    """Configure logging as the file says: dictConfig() for .json and .toml, fileConfig() for the rest.

    Loggers that exist already, such as prefork's own, stay enabled, unless the file says otherwise.
    source: where the path came from. SettingsError: the file cannot be read, or is no such
    configuration.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", "its text is not UTF-8")
        reason = f"the file cannot be read ({cause}); check its path and permissions"
        raise SettingsError("log_config", path, source, reason) from None
    try:
        _configure(path, text)
    except Exception as error:  # noqa: BLE001 - the configuration names classes of any kind
        found = error.__cause__ or error
        said = (
            f"no {found}" if isinstance(found, KeyError) else found
        )  # the text of a KeyError is the key
        reason = f"the file does not configure logging: {said}"
        raise SettingsError("log_config", path, source, reason) from None


def _configure(path: str, text: str) -> None:
    import configparser  # noqa: PLC0415 - a few milliseconds, for this setting only
    import logging.config  # noqa: PLC0415

    if path.endswith((".json", ".toml")):
        read = json.loads if path.endswith(".json") else tomllib.loads
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False} | read(text))
    else:
        # fileConfig() itself would read the file anew, and name no cause where that fails.
        parser = configparser.ConfigParser()
        parser.read_string(text, source=path)
        logging.config.fileConfig(parser, disable_existing_loggers=False)


def set_up(level: str, form: str, fd: int = 2) -> NonBlockingHandler:
    """Make the root logger write to ``fd``: the events of prefork and the records of the application.

    level, form: values of the settings ``log_level`` and ``log_format``. Other handlers of the root
    logger are removed. An application that configures logging while it is loaded overrides all
    this.
    """
    handler = NonBlockingHandler(fd, FORMATTERS[form]())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    return handler


def enable_ours() -> None:
    """Enable prefork's loggers again, which the application may have disabled without meaning to.

    ``dictConfig()`` and ``fileConfig()`` disable, with their defaults, all loggers that exist. The logger of
    a server that has loaded the application always exists. The application's handlers and levels stay.
    """
    for name, found in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "prefork" and isinstance(found, logging.Logger):
            found.disabled = False
