"""Giving memory back to the system: what an idle worker does about a heap that has grown (worker).

A request that builds something large takes memory from malloc(). When the request is over, most of this memory is
free, and stays with the process nevertheless: malloc() gives back only what is free at the end of its heap, and
one small object there keeps all the rest. ``malloc_trim()`` gives the free pages in between back, too. It
takes some milliseconds for a large heap, so a worker calls it only while it is idle, and only where its memory
has grown by GROWN since the last time. Other C libraries than glibc have no such function, and nothing happens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from prefork.workers import system
from prefork.workers.scoreboard import BUCKETS, SlotField
from prefork.workers.slot_writer import IN_PROGRESS, REQUEST_NS, SlotWriter

GROWN: Final = 8 << 20
"""Bytes by which a worker has to grow before a look at its heap is worth the time."""

_PAGE: Final = os.sysconf("SC_PAGESIZE")


def resident() -> int:
    """Return the bytes of memory that this process has for itself, roughly: those not backed by a file."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            fields = statm.read().split()
        return (int(fields[1]) - int(fields[2])) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


class Trimming:
    """The heap of one worker. size, trim: tests pass others than those of this process."""

    def __init__(
        self,
        writer: SlotWriter,
        size: Callable[[], int] = resident,
        trim: Callable[[], None] = system.trim_heap,
    ) -> None:
        self._writer = writer
        self._size = size
        self._trim = trim
        self._served = self._requests()
        self._least = 0

    def begin(self) -> None:
        """Note how large this worker is before its first request."""
        self._least = self._size()

    def look(self) -> None:
        """Trim the heap if it has grown. Called when the worker has been idle for a while."""
        words = self._writer.words
        served = self._requests()
        if served == self._served or words[REQUEST_NS] or words[IN_PROGRESS]:
            return
        self._served = served
        size = self._size()
        self._least = min(self._least, size)
        if size - self._least >= GROWN:
            self._trim()
            self._least = self._size()

    def _requests(self) -> int:
        words = self._writer.words
        return sum(words[SlotField.DURATIONS : SlotField.DURATIONS + BUCKETS])
