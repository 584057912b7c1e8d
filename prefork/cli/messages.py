"""What commands say to people on standard error."""

from __future__ import annotations

import contextlib
import select
import time

from prefork.cli.sinks import ATOMIC, sink_for
from prefork.workers.text import printable


def error(text: str) -> None:
    """Say why a command has failed."""
    say(f"prefork: error: {text}")


def warning(text: str) -> None:
    """Say what a command ignores."""
    say(f"prefork: warning: {text}")


def say(text: str, fd: int = 2, *, patience: float = 1.0) -> None:
    """Write a text and a newline, so that it cannot steer a terminal. This function never raises.

    patience: seconds to wait for a reader in all. What was not written by then is dropped, because
    a command must not hang at its exit behind a full pipe.
    """
    shown = "\n".join(map(printable, text.split("\n")))
    sink, data = sink_for(fd), f"{shown}\n".encode("utf-8", "backslashreplace")
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
