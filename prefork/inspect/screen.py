"""The loop of ``prefork top``: look at the pool or the pools, draw the screen, take keys, until q is pressed."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from rich.console import Console
from rich.control import Control

from prefork.host.stopping import undisturbed_cleanup
from prefork.inspect import fleet
from prefork.inspect.columns import SortOrder
from prefork.inspect.drawing import drawing
from prefork.inspect.fleet_drawing import fleet_drawing
from prefork.inspect.look import look
from prefork.inspect.remote import ANSWER_TIME, Url, Watch
from prefork.inspect.running_pool import PoolEndedError, RunningPool
from prefork.inspect.view import Look, view

if TYPE_CHECKING:
    from rich.console import RenderableType

_HISTORY: Final = 600


def watch(pool: RunningPool, *, sort: str, delay: float) -> None:
    """Show a pool until q, Ctrl-C or the end of the terminal; the terminal is restored afterwards.

    sort: the key of a column. delay: seconds between two looks. PoolEndedError: the pool has ended.
    """
    who = str(pool)
    _show(lambda: _Session(pool, SortOrder(sort), delay), pool.has_stopped)
    if pool.has_stopped():
        raise PoolEndedError(f"the pool has ended: {who}")


def watch_several(urls: Sequence[Url], *, delay: float) -> None:
    """Show several pools until q, Ctrl-C or the end of the terminal; the terminal is restored afterwards.

    delay: seconds between an answer of a host and the next question.
    """
    watches = [Watch(url, delay) for url in urls]
    try:
        _show(lambda: _Several(watches, delay), lambda: False)
    finally:
        for one in watches:
            one.end()


class _Shown(Protocol):
    """What the loop shows."""

    @property
    def seconds_left(self) -> float:
        """Seconds until the next look."""

    def look_if_due(self) -> None:
        """Look, if it is time."""

    def press(self, pressed: str) -> None:
        """Take keys."""

    def drawn(self, console: Console) -> RenderableType:
        """Return the screen."""


def _show(begin: Callable[[], _Shown], has_ended: Callable[[], bool]) -> None:
    console = Console()
    with contextlib.suppress(KeyboardInterrupt), undisturbed_cleanup() as cleanup:
        keys = cleanup.enter_context(_single_keys())
        screen = cleanup.enter_context(console.screen(hide_cursor=True))
        state = begin()
        while not has_ended():
            state.look_if_due()
            # Without this rich draws below the previous screen, and the terminal scrolls.
            console.control(Control.home())
            screen.update(state.drawn(console))
            pressed = _pressed(keys, state.seconds_left)
            if pressed is None or "q" in pressed:
                return
            state.press(pressed)


class _Session:
    """What was seen so far, and the order in which rows are shown."""

    def __init__(self, pool: RunningPool, order: SortOrder, delay: float) -> None:
        self._pool = pool
        self._order = order
        self._delay = delay
        self._before: Look | None = None
        self._now = look(pool)
        self._view = view(None, self._now)
        self._rates: deque[float] = deque(maxlen=_HISTORY)

    @property
    def seconds_left(self) -> float:
        """Seconds until the next look."""
        return max(0.0, self._now.at + self._delay - time.monotonic())

    def look_if_due(self) -> None:
        if self.seconds_left:
            return
        self._before, self._now = self._now, look(self._pool)
        self._view = view(self._before, self._now)
        self._rates.append(self._view.rate or 0.0)

    def press(self, pressed: str) -> None:
        for key in pressed:
            self._order = self._order.after_key(key)

    def drawn(self, console: Console) -> RenderableType:
        size = console.size
        return drawing(
            self._view,
            self._order,
            self._rates,
            size.width,
            size.height,
            ascii_only=console.options.ascii_only,
        )


class _Several:
    """Several pools, each of which a thread of its own asks."""

    def __init__(self, watches: Sequence[Watch], delay: float) -> None:
        self._watches = watches
        self._delay = delay
        self._at = time.monotonic()

    @property
    def seconds_left(self) -> float:
        """Seconds until the next look. Looking costs no question, so a quick first answer is shown at once."""
        return max(0.0, self._at + min(self._delay, 0.25) - time.monotonic())

    def look_if_due(self) -> None:
        if not self.seconds_left:
            self._at = time.monotonic()

    def press(self, pressed: str) -> None:
        """No key but q means anything here."""

    def drawn(self, console: Console) -> RenderableType:
        patience = self._delay + ANSWER_TIME + 1
        rows = [
            fleet.row(one.url.where, *one.seen, self._at, patience=patience)
            for one in self._watches
        ]
        return fleet_drawing(rows, console.size.width, console.size.height)


# --- keys


@contextlib.contextmanager
def _single_keys() -> Iterator[int]:
    """Make the terminal return each key at once and without echo; restore it afterwards.

    Ctrl-Z is switched off: a suspended ``top`` would leave the shell on the other screen, without
    an echo.
    """
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    changed = termios.tcgetattr(fd)
    changed[3] &= ~(termios.ICANON | termios.ECHO)
    changed[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(fd, termios.TCSADRAIN, changed)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def _pressed(fd: int, seconds: float) -> str | None:
    """Wait for a key, and return the keys that were pressed; None when the terminal is gone.

    seconds: the longest wait, though never more than 0.25 s, so that the end of the pool is
    noticed.
    """
    try:
        if not select.select([fd], [], [], min(seconds, 0.25))[0]:
            return ""
        return os.read(fd, 64).decode("ascii", "replace") or None
    except OSError:
        return None
