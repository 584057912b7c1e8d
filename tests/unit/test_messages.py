"""What commands say on standard error: all of it, and without hanging."""

from __future__ import annotations

import os

from prefork.cli import messages
from tests.support.logs import drain, fill


def test_say_gives_up_on_a_reader_that_does_not_come() -> None:
    """An exit does not hang behind a full pipe."""
    reader, writer = os.pipe()
    fill(writer)
    messages.say("never", writer, patience=0.01)
    drain(reader)
    messages.say("said\nlong " + "x" * 10_000, writer)
    assert drain(reader) == b"said\nlong " + b"x" * 10_000 + b"\n"
    os.close(reader)
    os.close(writer)


def test_say_to_nobody() -> None:
    """A closed standard error is no error."""
    reader, writer = os.pipe()
    os.close(reader)
    messages.say("x", writer)
    os.close(writer)
    messages.say("x", writer)
