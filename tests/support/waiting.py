"""Waiting for facts: no test sleeps for a while and hopes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Fact = TypeVar("Fact")

CEILING = 30.0
"""Seconds after which a fact that has no bound of its own is given up; generous, for slow machines."""

_POLL = 0.002


def wait_until(
    fact: Callable[[], Fact],
    message: str | Callable[[], str],
    ceiling: float = CEILING,
    poll: float = _POLL,
) -> Fact:
    """Return the first true value of ``fact()``; fail with ``message`` after ``ceiling`` seconds."""
    end = time.monotonic() + ceiling
    while True:
        value = fact()
        if value:
            return value
        if time.monotonic() >= end:
            text = message() if callable(message) else message
            raise AssertionError(f"not within {ceiling:g} s: {text} (last seen: {value!r})")
        time.sleep(poll)


def stays(fact: Callable[[], Fact], message: str, span: float, poll: float = _POLL) -> None:
    """Fail with ``message`` as soon as ``fact()`` is not true during ``span`` seconds."""
    end = time.monotonic() + span
    while time.monotonic() < end:
        value = fact()
        if not value:
            raise AssertionError(f"{message} (saw {value!r})")
        time.sleep(poll)


def let_pass(span: float) -> None:
    """Let time pass that a test is about: a window of measurement, the length of a fault. Never to wait for a fact."""
    time.sleep(span)


class Stopwatch:
    """Seconds since it was made, on the monotonic clock."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return time.monotonic() - self.began
