"""The loop of ``prefork top``: look at the pool, draw the screen, take keys, until q is pressed."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.control import Control

from prefork.host.stopping import undisturbed_cleanup
from prefork.inspect.columns import SortOrder
from prefork.inspect.drawing import drawing
from prefork.inspect.look import look
from prefork.inspect.running_pool import PoolEndedError, RunningPool
from prefork.inspect.view import Look, view

if TYPE_CHECKING:
    from rich.console import RenderableType

_HISTORY: Final = 600


def watch(pool: RunningPool, *, sort: str, delay: float) -> None:
    """Show a pool until q, Ctrl-C or the end of the terminal; the terminal is restored afterwards.

    sort: the key of a column. delay: seconds between two looks. PoolEndedError: the pool has ended.
    """
    console = Console()
    who = str(pool)
    with contextlib.suppress(KeyboardInterrupt), undisturbed_cleanup() as cleanup:
        keys = cleanup.enter_context(_single_keys())
        screen = cleanup.enter_context(console.screen(hide_cursor=True))
        state = _Session(pool, SortOrder(sort), delay)
        while not pool.has_stopped():
            state.look_if_due()
            # Without this rich draws below the previous screen, and the terminal scrolls.
            console.control(Control.home())
            screen.update(state.drawn(console))
            pressed = _pressed(keys, state.seconds_left)
            if pressed is None or "q" in pressed:
                return
            state.press(pressed)
    if pool.has_stopped():
        raise PoolEndedError(f"the pool has ended: {who}")


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
