"""What commands say to people on standard error."""

from __future__ import annotations

import contextlib
import select
import time

from prefork.cli.sinks import ATOMIC, sink_for


def say(text: str, fd: int = 2, *, patience: float = 1.0) -> None:
    """Write a message for people, such as the last error of a command; raises nothing.

    patience: seconds to wait for a reader in all; an exit must not hang behind a full pipe.
    """
    sink, data = sink_for(fd), f"{text}\n".encode("utf-8", "backslashreplace")
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


def error(text: str) -> None:
    """Say on standard error why a command has failed."""
    say(f"prefork: error: {text}")


def warning(text: str) -> None:
    """Say on standard error what a command ignores."""
    say(f"prefork: warning: {text}")
