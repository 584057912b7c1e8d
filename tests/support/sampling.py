"""A watch over a master's children: how many live at once, and how long its zombies stay."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from tests.support.processes import children_of

if TYPE_CHECKING:
    from types import TracebackType


class ChildrenWatch:
    """``with ChildrenWatch(master) as watch:`` looks every few milliseconds until the block ends.

    A count is never too high: who is listed and afterwards seen alive was alive when the list was read.
    """

    def __init__(self, master: int, pause: float = 0.001) -> None:
        self.most = 0
        self.samples = 0
        self.oldest_zombie = 0.0
        self._master = master
        self._pause = pause
        self._dead_since: dict[int, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._ending.wait(self._pause):
            self._look()

    def _look(self) -> None:
        children = children_of(self._master)
        now = time.monotonic()
        dead = {child.pid for child in children if child.is_zombie}
        self.samples += 1
        self.most = max(self.most, len(children) - len(dead))
        self._dead_since = {pid: self._dead_since.get(pid, now) for pid in dead}
        for since in self._dead_since.values():
            self.oldest_zombie = max(self.oldest_zombie, now - since)
