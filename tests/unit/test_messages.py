"""Messages on standard error: they are written whole, and never hang the command."""

from __future__ import annotations

import os

from prefork.cli import messages
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
