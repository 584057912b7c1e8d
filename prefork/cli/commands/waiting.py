"""Wait until the scoreboard shows the effect of a command, with a line of progress on the terminal."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final, Self

from prefork.inspect import humanize
from prefork.workers.errors import PreforkError
from prefork.workers.scoreboard import PoolField
from prefork.workers.settings import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from prefork.inspect.running_pool import RunningPool

LOOK_EVERY: Final = 0.01
"""Seconds between two looks at the scoreboard. A snapshot of an ordinary pool takes about 50 µs."""

SPARE_TIME: Final = 5.0
"""Seconds that a command waits by default beyond the pool's own timeouts, so that the master can
act on them.
"""

TICKS_NEEDED: Final = 2
"""Ticks after which the master has handled every earlier signal. The first one may have begun
before the signal.
"""

LONGEST_WAIT: Final = 3600.0
"""Seconds of one of the pool's timeouts that a command believes. What a pool says of itself may be
untrue: its workers can write to the scoreboard. ``--timeout`` waits as long as it says.
"""

FLICKER_TIME: Final = 0.3
"""Seconds during which no progress is shown. What is done by then would only flicker."""

_BAR: Final = 20


def seconds_of(pool: RunningPool, key: str) -> float:
    """Return the seconds of one of the pool's settings, at most LONGEST_WAIT.

    The default stands for a setting of which the pool's description has no valid value.
    """
    row = ROWS[key]
    said = pool.description().settings.get(key)
    try:
        seconds: float = row.converted(said, "scoreboard", text=True)
    except PreforkError:
        seconds = row.converted(row.default, "default")
    return min(seconds, LONGEST_WAIT)


def wait_until(fact: Callable[[], bool], tell: Callable[[], str], seconds: float) -> bool:
    """Wait until ``fact()`` is true, and return whether it became true within these seconds.

    tell: returns a line that says how far it is.
    """
    with ProgressLine() as progress:
        end = time.monotonic() + seconds
        while not fact():
            if time.monotonic() >= end:
                return False
            progress.show(tell())
            time.sleep(LOOK_EVERY)
    return True


class TickCounter:
    """Counts the ticks of a master, beginning when the object is made."""

    def __init__(self, pool: RunningPool) -> None:
        self._pool = pool
        self._last = self._tick()
        self._seen = 0

    def enough(self) -> bool:
        """Return whether the master has handled every signal sent before.

        Call this at least once in each tick.
        """
        tick = self._tick()
        self._seen += tick != self._last
        self._last = tick
        return self._seen >= TICKS_NEEDED

    def _tick(self) -> int:
        return self._pool.board.pool(PoolField.TICK_NS)


class ProgressLine:
    """One line on standard error that is rewritten, and erased at the end.

    Nothing is written to a file or pipe. hidden_for: seconds during which no text is shown.
    """

    def __init__(self, fd: int = 2, *, hidden_for: float = FLICKER_TIME) -> None:
        self._fd = fd
        self._shows = os.isatty(fd)
        self._from = time.monotonic() + hidden_for
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._last:
            self._write("")

    def show(self, text: str) -> None:
        """Replace the line by this text, cut to the width of the terminal."""
        if self._shows and text != self._last and time.monotonic() >= self._from:
            width = os.get_terminal_size(self._fd).columns or 80  # some terminals report 0
            self._write(text[: max(0, width - 1)])
            self._last = text

    def _write(self, text: str) -> None:
        sys.stdout.flush()
        os.write(self._fd, f"\r\x1b[K{text}".encode())


def bar(done: int, of: int) -> str:
    """Return a bar that shows how much of something is done (pure)."""
    full = _BAR if of <= 0 else min(_BAR, max(0, done) * _BAR // of)
    return f"[{'#' * full}{'-' * (_BAR - full)}] {done} of {of}"


def excuse(pool: RunningPool) -> str:
    """Return why the master has not acted, with a semicolon in front; "" where no reason is known."""
    if pool.has_stopped():
        return "; the pool has ended"
    if pool.is_suspended():
        return f"; the master {pool.pid} is suspended (kill -CONT {pool.pid} resumes it)"
    status = pool.status()
    if humanize.is_hung(status):
        return f"; the master {pool.pid} has hung for {humanize.duration(status['last_tick'])}"
    return ""
