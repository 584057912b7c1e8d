"""TERM and Ctrl-C while no master takes them: while a program loads, binds and cleans up.

Python's default would end the process at once on TERM, and would raise KeyboardInterrupt anywhere
on Ctrl-C. Both would leave socket files and a pid file behind. So around serving TERM raises an
exception, which unwinds the stack as Ctrl-C does; a constructor is not interrupted; and a cleanup
is not either.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class StoppedEarly(BaseException):
    """TERM came before the master took signals, or after it."""


@contextlib.contextmanager
def term_unwinds() -> Iterator[None]:
    """Make TERM raise StoppedEarly while the body runs, where the master does not handle it."""
    before = signal.signal(signal.SIGTERM, _unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def stops_deferred() -> Iterator[None]:
    """Delay the first TERM or Ctrl-C until the body is done. A second one takes effect at once.

    An exception in the middle of a server's constructor would leave a socket file behind: the
    socket is bound, and there is no server yet that could remove the file.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            _unwind(number, frame)
        noted.append(number)

    before = {
        number: signal.signal(number, note)
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) is not signal.SIG_IGN  # such as under nohup
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
    """Give an ExitStack whose callbacks TERM and Ctrl-C cannot interrupt.

    They remove socket files and the pid file.
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
