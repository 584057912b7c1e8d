"""The command line's log: what lines say, and that writing them never waits, fails or mixes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pty
import re
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from prefork.cli import logs
from prefork.cli.logs import ATOMIC, JsonFormatter, NonBlockingHandler, TextFormatter
from prefork.workers.log import event
from prefork.workers.log import logger as prefork_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def record(message: str = "hello", *arguments: object, name: str = "app", **more: Any) -> Any:
    """Make a log record as the application makes them."""
    made = logging.LogRecord(name, logging.INFO, "app.py", 7, message, arguments, None)
    made.__dict__.update(more)
    return made


class Caught(logging.Handler):
    """Keeps the records that event() logs."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.append(record)


@pytest.fixture
def told() -> Iterator[Callable[..., logging.LogRecord]]:
    """``told(subject, what, **facts)`` gives the record of an event."""
    caught, level = Caught(), prefork_logger.level
    prefork_logger.addHandler(caught)
    prefork_logger.setLevel(logging.INFO)

    def tell(subject: str, what: str, **facts: Any) -> logging.LogRecord:
        event(logging.INFO, subject, what, **facts)
        return caught.records[-1]

    yield tell
    prefork_logger.removeHandler(caught)
    prefork_logger.setLevel(level)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Give the reading and the writing end of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.fixture
def handler_for() -> Iterator[Callable[..., NonBlockingHandler]]:
    """``handler_for(fd)`` makes a handler that is closed after the test."""
    made: list[NonBlockingHandler] = []

    def make(fd: int, formatter: logs.LineFormatter | None = None) -> NonBlockingHandler:
        made.append(NonBlockingHandler(fd, formatter))
        return made[-1]

    yield make
    for handler in made:
        handler.close()


def in_child(body: Callable[..., None], *arguments: object) -> int:
    """Run a function in a child, which ends with 0 if it raised nothing."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            body(*arguments)
            status = 0
        finally:
            os._exit(status)
    return child


def fill(fd: int) -> None:
    """Fill a pipe to the last byte."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"x" * ATOMIC)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"x")
    os.set_blocking(fd, True)


def drain(fd: int) -> bytes:
    """Read what is there now."""
    os.set_blocking(fd, False)
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(fd, 65_536):
            parts.append(part)
    os.set_blocking(fd, True)
    return b"".join(parts)


# --- text


def test_events_are_lines_of_their_own_words(told: Callable[..., logging.LogRecord]) -> None:
    """Lines of prefork carry time, level and the identity that event() gave them."""
    line = TextFormatter().format(told("worker slot=3 gen=0 pid=4711", "ready", boot=0.25))
    assert re.fullmatch(f"{TIME} INFO    worker slot=3 gen=0 pid=4711 ready boot=0.25", line)


def test_the_application_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other loggers' lines say who speaks, and in which process."""
    line = TextFormatter().format(record("%d apples", 3, name="shop.stock", process=99))
    assert re.fullmatch(rf"{TIME} INFO    shop\.stock\[99\]: 3 apples", line)


def test_reports_follow_indented(told: Callable[..., logging.LogRecord]) -> None:
    """A report appears once, below its line."""
    text = TextFormatter().format(told("master", "failed", report="Traceback:\n  File x\nE: y\n"))
    assert text.split(" ", 1)[1] == "INFO    master failed\n    Traceback:\n      File x\n    E: y"


def test_exceptions_follow_indented() -> None:
    """``logging.exception`` of the application: message first, traceback below."""
    try:
        1 / 0  # noqa: B018 - the exception is the point
    except ZeroDivisionError:
        made = record("broken", exc_info=sys.exc_info())
    lines = TextFormatter().format(made).splitlines()
    assert lines[0].endswith(f"app[{os.getpid()}]: broken")
    assert lines[1] == "    Traceback (most recent call last):"
    assert lines[-1] == "    ZeroDivisionError: division by zero"


def test_clients_cannot_forge_lines_or_steer_terminals() -> None:
    """What follows a line break is indented, and control characters are shown as text."""
    text = TextFormatter().format(record("got \x1b[2J\r %s", "a\n2026-01-01 forged\x07"))
    first, *rest = text.splitlines()
    assert first.endswith("got \\x1b[2J\\r a")
    assert rest == ["    2026-01-01 forged\\x07"]


def test_records_that_cannot_be_formatted_are_still_told() -> None:
    """A wrong format string of the application costs neither the line nor the worker."""
    assert "app.py:7 cannot be formatted: 'x %d'" in TextFormatter().format(record("x %d", "y"))


# --- JSON


def test_json_has_the_facts(told: Callable[..., logging.LogRecord]) -> None:
    """One object per line; facts keep their types and stand apart from our keys."""
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
        "subject": "worker slot=1 gen=0 pid=7",
        "event": "exited",
        "facts": {"cause": "killed(SIGKILL)", "age": 1.5, "pid": 3},
    }


def test_json_reports_are_a_key(told: Callable[..., logging.LogRecord]) -> None:
    """The report keeps its lines, inside one line of JSON."""
    said = json.loads(JsonFormatter().format(told("master", "failed", report="one\n  two\n")))
    assert said["report"] == "one\n  two"
    assert said["message"] == "master failed"
    assert "facts" not in said


def test_json_of_the_application() -> None:
    """Records of other loggers have a message, and a report where there is an exception."""
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
    """Whatever is logged fits into one atomic write, ends in a newline and stays readable."""
    rendered = formatter.encoded(made, ATOMIC)
    assert len(rendered) <= ATOMIC
    assert rendered.endswith(b"\n")
    if isinstance(formatter, JsonFormatter):
        assert json.loads(rendered)["level"] == "info"


def test_long_reports_lose_their_middle() -> None:
    """A traceback tells most at its end, and where it began."""
    report = "\n".join(["first", *(f"frame {n}" for n in range(5000)), "ValueError: last"])
    lines = TextFormatter().encoded(record("m", report=report), ATOMIC).decode().splitlines()
    assert lines[1] == "    first"
    assert lines[-1] == "    ValueError: last"
    (cut,) = [line for line in lines if "lines cut" in line]
    assert len(lines) - 2 + int(cut.split()[1]) == 5002


# --- sinks


def test_one_record_is_one_write(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """A pipe gets whole lines."""
    reader, writer = pipe
    handler = handler_for(writer)
    handler.emit(record("one"))
    handler.emit(record("two"))
    assert [line[-3:] for line in drain(reader).splitlines()] == [b"one", b"two"]
    assert handler.lost == 0


def test_full_pipe_loses_lines_and_says_so_once(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """Nobody reads: nothing waits. Somebody reads again: one line tells how many were lost."""
    reader, writer = pipe
    handler = handler_for(writer)
    fill(writer)
    for number in range(100):
        handler.emit(record(f"lost {number}"))
    assert handler.lost == 100
    drain(reader)
    handler.emit(record("heard"))
    notice, heard = drain(reader).decode().splitlines()
    assert notice.endswith('WARNING log lost lines lines=100 reason="nobody reads"')
    assert heard.endswith("heard")
    assert handler.lost == 0


def test_flush_tells_the_loss(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """At the end there may be no further record to tell it with."""
    reader, writer = pipe
    handler = handler_for(writer, JsonFormatter())
    fill(writer)
    handler.emit(record("lost"))
    handler.flush()
    assert handler.lost == 1
    drain(reader)
    handler.flush()
    assert json.loads(drain(reader))["facts"] == {"lines": 1, "reason": "nobody reads"}


def test_flags_of_the_shared_description_stay(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """The shell that gave us its standard error still has a blocking one."""
    _, writer = pipe
    handler_for(writer).emit(record())
    assert os.get_blocking(writer)
    assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_APPEND


def test_reader_that_left(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """EPIPE is a lost line, no signal and no exception."""
    reader, writer = pipe
    handler = handler_for(writer)
    os.close(reader)
    handler.emit(record())
    assert handler.lost == 1


def test_pipe_that_cannot_be_opened_again(
    pipe: tuple[int, int],
    handler_for: Callable[..., NonBlockingHandler],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another user's pipe is asked before each write, with the same outcome."""
    reader, writer = pipe

    def refuse(*_arguments: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        handler = handler_for(writer)
    handler.emit(record("one"))
    assert drain(reader).endswith(b"one\n")
    fill(writer)
    handler.emit(record("lost"))
    assert handler.lost == 1
    drain(reader)
    handler.emit(record("two"))
    assert [line[-3:] for line in drain(reader).splitlines()] == [b'ds"', b"two"]
    assert os.get_blocking(writer)


def test_closed_descriptor(handler_for: Callable[..., NonBlockingHandler]) -> None:
    """Standard error may be closed: then there is no log."""
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    handler = handler_for(writer)
    handler.emit(record())
    handler.flush()
    assert handler.lost == 1


def test_descriptor_closed_by_the_application(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """The handler writes to a descriptor of its own, so standard error may be closed under it."""
    reader, writer = pipe
    handler = handler_for(writer)
    os.close(writer)
    handler.emit(record("still here"))
    assert drain(reader).endswith(b"still here\n")


def test_full_disk(handler_for: Callable[..., NonBlockingHandler]) -> None:
    """ENOSPC is a lost line with its reason."""
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        handler = handler_for(fd)
        handler.emit(record())
        assert handler.lost == 1
        assert handler._why == "No space left on device"
    finally:
        os.close(fd)


def test_file_shares_its_offset_with_standard_error(
    tmp_path: Path, handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """With ``2>log``, what the application prints and what we log do not overwrite each other."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        handler = handler_for(fd)
        os.write(fd, b"printed\n")
        handler.emit(record("logged"))
        os.write(fd, b"printed again\n")
        handler.emit(record("report", report="x\n" * 10_000))
    finally:
        os.close(fd)
    lines = path.read_text().splitlines()
    assert [lines[0], lines[1][-6:], lines[2]] == ["printed", "logged", "printed again"]
    assert len(lines) == 4 + 10_000


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_sockets(kind: int, handler_for: Callable[..., NonBlockingHandler]) -> None:
    """Standard error may be a socket (of journald); its flags stay, and a full one loses lines."""
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    with near, far:
        handler = handler_for(near.fileno())
        handler.emit(record("one"))
        assert far.recv(ATOMIC).endswith(b"one\n")
        while handler.lost == 0:
            handler.emit(record("x" * 1000))
        assert os.get_blocking(near.fileno())
        far.close()
        handler.emit(record("nobody"))
        assert handler.lost == 2


def test_rest_of_a_cut_line_comes_first(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """Where the kernel takes a part (terminals, TCP), the line is finished before the next one."""
    reader, writer = pipe
    handler = handler_for(writer)
    write, most = os.write, 5

    class Narrow(logs._Sink):
        def write(self, data: bytes) -> int:
            return write(self.fd, data[:most])

    assert handler._sink is not None
    handler._sink.close()
    handler._sink = Narrow(os.dup(writer))
    handler.emit(record("one"))
    assert len(drain(reader)) == 5
    most = 1000
    handler.emit(record("two"))
    assert re.fullmatch(rb"[^\n]*one\n[^\n]*two\n", drain(reader))


def test_terminal(handler_for: Callable[..., NonBlockingHandler]) -> None:
    """A terminal that nobody reads, as after Ctrl-S, does not stop a master either."""
    reader, terminal = pty.openpty()
    try:
        handler = handler_for(terminal)
        while handler.lost == 0:
            handler.emit(record("x" * 500))
        assert os.get_blocking(terminal)
    finally:
        os.close(reader)
        os.close(terminal)


@pytest.mark.processes
def test_child_owes_nothing_of_the_parents(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """Each process counts its own losses, so none is told twice."""
    reader, writer = pipe
    handler = handler_for(writer)
    fill(writer)
    handler.emit(record("lost by the parent"))

    def lose_one() -> None:
        handler.emit(record("lost by the child"))
        assert handler.lost == 1

    child = in_child(lose_one)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert handler.lost == 1
    drain(reader)


@pytest.mark.processes
def test_workers_lines_never_mix(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """Eight processes write long records into one pipe: every line comes out whole."""
    reader, writer = pipe
    handler = handler_for(writer)

    def write_much(number: int) -> None:
        for serial in range(200):
            handler.emit(record(f"{number} {serial} " + str(number) * 3000))

    children = [in_child(write_much, number) for number in range(8)]
    os.close(writer)
    handler.close()
    with open(reader, "rb", closefd=False) as stream:
        lines = stream.read().decode().splitlines()
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    told = [line.partition("]: ")[2] for line in lines]
    said = [line.split() for line in told if line]
    assert said
    assert all(set(words[2]) == {words[0]} and len(words[2]) == 3000 for words in said)


# --- set-up, and words without a log


def test_set_up_replaces_what_the_root_logger_had(pipe: tuple[int, int]) -> None:
    """The application's records go the same way, at the level that was asked for."""
    reader, writer = pipe
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        handler = logs.set_up("warning", "json", writer)
        logging.getLogger("shop").info("no")
        logging.getLogger("shop").warning("yes")
        assert json.loads(drain(reader))["message"] == "yes"
        root.removeHandler(handler)
        handler.close()
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_say_gives_up_on_a_reader_that_does_not_come(pipe: tuple[int, int]) -> None:
    """An exit does not hang behind a full pipe."""
    reader, writer = pipe
    fill(writer)
    logs.say("never", writer, patience=0.01)
    drain(reader)
    logs.say("said\nlong " + "x" * 10_000, writer)
    assert drain(reader) == b"said\nlong " + b"x" * 10_000 + b"\n"


def test_say_to_nobody() -> None:
    """A closed standard error is no error."""
    reader, writer = os.pipe()
    os.close(reader)
    logs.say("x", writer)
    os.close(writer)
    logs.say("x", writer)


def test_handler_swallows_what_a_formatter_raises(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """Even a bug of a formatter is only a lost line."""

    class Broken:
        def encoded(self, record: logging.LogRecord, limit: int) -> bytes:
            raise RuntimeError

    handler = handler_for(pipe[1], Broken())
    handler.emit(record())
    assert (handler.lost, handler._why) == (1, "RuntimeError")
    assert traceback.format_exc() == "NoneType: None\n"
