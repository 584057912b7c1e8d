"""TERM and Ctrl-C around the times in which no master takes them: loading, binding, cleaning up."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class StoppedEarly(BaseException):
    """TERM came while the master did not yet, or does no longer, take signals itself."""


@contextlib.contextmanager
def term_unwinds() -> Iterator[None]:
    """Make TERM clean up like an exception where the master does not handle it: around serving."""
    before = signal.signal(signal.SIGTERM, _unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def stops_deferred() -> Iterator[None]:
    """Keep the first TERM or Ctrl-C until the body is done; a second one does not wait.

    An exception in the middle of a server's constructor would leave a socket file that nobody
    knows of.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            _unwind(number, frame)
        noted.append(number)

    before = {
        number: signal.signal(number, note)
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup and the like
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        _unwind(noted[0], None)


def _unwind(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else StoppedEarly


@contextlib.contextmanager
def undisturbed_cleanup() -> Iterator[contextlib.ExitStack]:
    """Give an ExitStack whose unwinding is not disturbed by TERM or a second Ctrl-C.

    It removes socket files and the pid file.
    """
    before: dict[int, Any] = {}
    try:
        with contextlib.ExitStack() as stack:
            try:
                yield stack
            finally:
                for stop in (signal.SIGTERM, signal.SIGINT):
                    before[stop] = signal.signal(stop, signal.SIG_IGN)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
