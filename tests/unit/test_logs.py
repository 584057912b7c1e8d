"""The log of the command line: writing never waits, raises or mixes lines."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pty
import re
import socket
import traceback
from typing import TYPE_CHECKING

import pytest

from prefork.cli import logs
from prefork.cli.log_lines import JsonFormatter, LineFormatter
from prefork.cli.logs import NonBlockingHandler
from prefork.cli.sinks import ATOMIC, Sink
from prefork.workers.errors import SettingsError
from tests.support.logs import drain, fill, record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Yield the reading and the writing end of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.fixture
def handler_for() -> Iterator[Callable[..., NonBlockingHandler]]:
    """``handler_for(fd)`` makes a handler that is closed after the test."""
    made: list[NonBlockingHandler] = []

    def make(fd: int, formatter: LineFormatter | None = None) -> NonBlockingHandler:
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


def test_one_record_is_one_write(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """Each record is one whole line in a pipe."""
    reader, writer = pipe
    handler = handler_for(writer)
    handler.emit(record("one"))
    handler.emit(record("two"))
    assert [line[-3:] for line in drain(reader).splitlines()] == [b"one", b"two"]
    assert handler.lost == 0


def test_full_pipe_loses_lines_and_says_so_once(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """A full pipe delays nothing, and one line says how many records were lost when it is read again."""
    reader, writer = pipe
    handler = handler_for(writer)
    fill(writer)
    for number in range(100):
        handler.emit(record(f"lost {number}"))
    assert handler.lost == 100
    drain(reader)
    handler.emit(record("heard"))
    notice, heard = drain(reader).decode().splitlines()
    assert notice.endswith('WARNING log lost lines lines=100 reason="reader too slow"')
    assert heard.endswith("heard")
    assert handler.lost == 0


def test_flush_tells_the_loss(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """``flush()`` writes the number of lost records without a further record."""
    reader, writer = pipe
    handler = handler_for(writer, JsonFormatter())
    fill(writer)
    handler.emit(record("lost"))
    handler.flush()
    assert handler.lost == 1
    drain(reader)
    handler.flush()
    assert json.loads(drain(reader))["facts"] == {"lines": 1, "reason": "reader too slow"}


def test_flags_of_the_shared_description_stay(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """The open file description of standard error stays blocking for the shell that shares it."""
    _, writer = pipe
    handler_for(writer).emit(record())
    assert os.get_blocking(writer)
    assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_APPEND


def test_reader_that_left(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """A reader that has left costs a line, and raises no signal or exception."""
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
    """A pipe that cannot be opened again is written to without waiting, too."""
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
    assert [line[-3:] for line in drain(reader).splitlines()] == [b'ow"', b"two"]
    assert os.get_blocking(writer)


def test_closed_descriptor(handler_for: Callable[..., NonBlockingHandler]) -> None:
    """A handler for a closed descriptor drops all records and raises nothing."""
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
    """The handler still writes after the application has closed standard error."""
    reader, writer = pipe
    handler = handler_for(writer)
    os.close(writer)
    handler.emit(record("still here"))
    assert drain(reader).endswith(b"still here\n")


def test_configuration_that_closes_all_handlers(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """A closed handler writes the next record all the same, as ``logging.config`` closes those it leaves in use."""
    reader, writer = pipe
    handler = handler_for(writer)
    handler.close()
    handler.emit(record("still here"))
    assert drain(reader).endswith(b"still here\n")
    assert handler.lost == 0


def test_descriptor_that_closed_while_its_handler_was_closed(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler], tmp_path: Path
) -> None:
    """A handler writes nothing into another file that gets the number of its descriptor later."""
    _, writer = pipe
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    handler = handler_for(writer)
    handler.close()
    os.close(writer)
    handler.emit(record("lost"))
    os.dup2(other, writer)
    handler.emit(record("lost, too"))
    assert handler.lost == 2
    os.close(other)
    assert (tmp_path / "other").read_bytes() == b""


def test_full_disk(handler_for: Callable[..., NonBlockingHandler]) -> None:
    """A full disk costs a line, and the reason is reported."""
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
    """With ``2>log``, the log and what the application prints do not overwrite each other."""
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
    """A socket as standard error keeps its flags, and drops lines while it is full."""
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
    """A line of which the kernel took only a part is finished before the next line begins."""
    reader, writer = pipe
    handler = handler_for(writer)
    write, most = os.write, 5

    class Narrow(Sink):
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
    """A terminal that is not read, as after Ctrl-S, delays nothing."""
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
    """A forked process does not report the losses of its parent."""
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
    """Long records that eight processes write into one pipe come out as whole lines."""
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


def test_handler_swallows_what_a_formatter_raises(
    pipe: tuple[int, int], handler_for: Callable[..., NonBlockingHandler]
) -> None:
    """An exception of a formatter costs a line and is not raised."""

    class Broken:
        def encoded(self, record: logging.LogRecord, limit: int) -> bytes:
            raise RuntimeError

    handler = handler_for(pipe[1], Broken())
    handler.emit(record())
    assert (handler.lost, handler._why) == (1, "RuntimeError")
    assert traceback.format_exc() == "NoneType: None\n"


def test_set_up_replaces_what_the_root_logger_had(pipe: tuple[int, int]) -> None:
    """``set_up()`` replaces all handlers of the root logger and sets its level."""
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


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("log.ini", None, "cannot be read (No such file or directory)"),
        ("log.json", None, "cannot be read (No such file or directory)"),
        ("log.ini", b"\xff", "cannot be read (its text is not UTF-8)"),
        ("log.ini", b"", "does not configure logging: no 'formatters'"),
        ("log.ini", b"import os", "log.ini', line: 1"),
        ("log.json", b"{", "does not configure logging: Expecting property name"),
    ],
)
def test_wrong_configuration_of_logging_is_refused(
    tmp_path: Path, name: str, text: bytes | None, words: str
) -> None:
    """A file that cannot be read, or that does not configure logging, is refused with the cause."""
    if text is not None:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(SettingsError, match=re.escape(words)):
        logs.set_up_from(str(tmp_path / name), "flag --log-config")
