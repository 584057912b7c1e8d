"""Messages on standard error: they are written whole, and never hang the command."""

from __future__ import annotations

import os

import pytest

from prefork.cli import messages
from prefork.workers.errors import BindError, SettingsError, TargetError
from tests.support.logs import drain, fill


def test_say_gives_up_on_a_reader_that_does_not_come() -> None:
    """A full pipe is waited for only as long as ``patience`` says."""
    reader, writer = os.pipe()
    fill(writer)
    messages.say("never", writer, patience=0.01)
    drain(reader)
    messages.say("said\nlong " + "x" * 10_000, writer)
    assert drain(reader) == b"said\nlong " + b"x" * 10_000 + b"\n"
    os.close(reader)
    os.close(writer)


def test_say_to_nobody() -> None:
    """A closed descriptor and a pipe without a reader raise nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    messages.say("x", writer)
    os.close(writer)
    messages.say("x", writer)


def test_message_steers_no_terminal() -> None:
    """Escape sequences in a message are shown as text; its own lines stay lines."""
    reader, writer = os.pipe()
    messages.say("one \x1b[31m \x9b \r\u2028\u202e\ntwo", writer)
    assert drain(reader) == b"one \\x1b[31m \\x9b \\r\\u2028\\u202e\ntwo\n"
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    "error",
    [
        TargetError("x:\x1b", "x has no \x1b[31m\n"),
        SettingsError("bind", "\x1b", "flag \x1b", "not \x1b[31m"),
        BindError("unix:\x1b", "no \x1b"),
    ],
)
def test_error_is_one_printable_line(error: Exception) -> None:
    """The text of an error is printable, whatever was given, also in a program's own traceback."""
    assert str(error).isprintable()
