"""Waiting until the scoreboard shows what was asked for, with a line on the terminal that says how far it is."""

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
"""Seconds between two looks at the scoreboard: a snapshot of a usual pool costs some 50 µs."""

SPARE_TIME: Final = 5.0
"""Seconds beyond the pool's own timeouts that are waited by default: the master has to notice, too."""

TICKS_NEEDED: Final = 2
"""TickCounter around of the master until all signals of before have surely been taken: one may be under way."""

_QUICK: Final = 0.3
"""Seconds within which no progress is shown: it would only flicker."""

_BAR: Final = 20


def seconds_of(pool: RunningPool, key: str) -> float:
    """Return a duration of the pool's settings, the default if it does not say."""
    row = ROWS[key]
    said = pool.description().settings.get(key)
    try:
        seconds: float = row.converted(said, "scoreboard", text=True)
    except PreforkError:
        seconds = row.converted(row.default, "default")
    return seconds


def wait_until(fact: Callable[[], bool], tell: Callable[[], str], seconds: float) -> bool:
    """Look until the fact is so; False if it is not within so many seconds. tell: how far it is, in a line."""
    with ProgressLine() as progress:
        end = time.monotonic() + seconds
        while not fact():
            if time.monotonic() >= end:
                return False
            progress.show(tell())
            time.sleep(LOOK_EVERY)
    return True


class TickCounter:
    """Counts how often the master has looked around since this was made."""

    def __init__(self, pool: RunningPool) -> None:
        self._pool = pool
        self._last = self._tick()
        self._seen = 0

    def enough(self) -> bool:
        """Tell whether it has taken what was sent before; to be asked again and again."""
        tick = self._tick()
        self._seen += tick != self._last
        self._last = tick
        return self._seen >= TICKS_NEEDED

    def _tick(self) -> int:
        return self._pool.board.pool(PoolField.TICK_NS)


class ProgressLine:
    """One line of a terminal (standard error) that is written anew; nothing where that is none."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._shows = os.isatty(fd)
        self._from = time.monotonic() + _QUICK
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
        """Show this now, unless it all goes quickly."""
        if self._shows and text != self._last and time.monotonic() >= self._from:
            width = os.get_terminal_size(self._fd).columns or 80  # some terminals do not say
            self._write(text[: max(0, width - 1)])
            self._last = text

    def _write(self, text: str) -> None:
        sys.stdout.flush()
        os.write(self._fd, f"\r\x1b[K{text}".encode())


def bar(done: int, of: int) -> str:
    """Draw how much of something is done (pure)."""
    full = _BAR if of <= 0 else min(_BAR, max(0, done) * _BAR // of)
    return f"[{'#' * full}{'-' * (_BAR - full)}] {done} of {of}"


def excuse(pool: RunningPool) -> str:
    """Say what about the master explains that something was not done, "" if nothing does."""
    if pool.has_stopped():
        return "; the pool has ended"
    if pool.is_suspended():
        return f"; process {pool.pid} is stopped (SIGCONT lets it go on)"
    status = pool.status()
    if humanize.is_hung(status):
        return f"; its master has not looked around for {humanize.duration(status['last_tick'])}"
    return ""
