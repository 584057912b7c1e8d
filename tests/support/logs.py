"""Log records, and the pipes that they are written to."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

from prefork.cli.sinks import ATOMIC


def record(message: str = "hello", *arguments: object, name: str = "app", **more: Any) -> Any:
    """Make a log record as the application makes them."""
    made = logging.LogRecord(name, logging.INFO, "app.py", 7, message, arguments, None)
    made.__dict__.update(more)
    return made


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
