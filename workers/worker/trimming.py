"""Giving memory back to the system: what an idle worker does about a heap that has grown (worker).

A request that builds something large takes memory from malloc(). When the request is over, most of this memory is
free, and stays with the process nevertheless: malloc() gives back only what is free at the end of its heap, and
one small object there keeps all the rest. ``malloc_trim()`` gives the free pages in between back, too. It
takes some milliseconds for a large heap, so a worker calls it only while it is idle, and only where its memory
has grown by GROWN since the last time. Looks take SHARE of a worker's time at most. Other C libraries than glibc have no
such function, and nothing happens.

The worker also publishes how much malloc() still keeps, and how many modules it has imported since the fork, for
``prefork memory``. No other process can see these two numbers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import Final

from prefork.workers import system
from prefork.workers.scoreboard import BUCKETS, SlotField
from prefork.workers.slot_writer import IN_PROGRESS, REQUEST_NS, SlotWriter

GROWN: Final = 8 << 20
"""Bytes by which a worker has to grow before a look at its heap is worth the time."""

REST: Final = 1.0
"""Seconds without anything to do, after a request, after which a worker looks."""

SHARE: Final = 0.01
"""The share of a worker's time that its looks may take: to trim a heap takes 20 ms for each 100 MB."""

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
    """The heap of one worker. size, trim, kept, clock: tests pass others than those of this process."""

    def __init__(
        self,
        writer: SlotWriter,
        size: Callable[[], int] = resident,
        trim: Callable[[], None] = system.trim_heap,
        kept: Callable[[], int] = system.heap_kept,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._writer = writer
        self._size = size
        self._trim = trim
        self._kept = kept
        self._clock = clock
        self._next_look = 0.0
        self._returned = self._modules = 0
        self._served = self._requests()
        self._least = 0

    def begin(self) -> None:
        """Note how large this worker is before its first request, and which modules it has."""
        self._least = self._size()
        self._modules = len(sys.modules)
        words = self._writer.words
        words[SlotField.HEAP_KEPT] = words[SlotField.MODULES] = 0

    def look(self) -> None:
        """Trim the heap if it has grown. Called when the worker has been idle for a while."""
        words = self._writer.words
        served = self._requests()
        if served == self._served or words[REQUEST_NS] or words[IN_PROGRESS]:
            return
        began = self._clock()
        if began < self._next_look:
            return
        self._served = served
        self._trim_if_grown()
        self._publish()
        ended = self._clock()
        self._next_look = ended + (ended - began) / SHARE

    def _trim_if_grown(self) -> None:
        size = self._size()
        self._least = min(self._least, size)
        if size - self._least >= GROWN:
            self._trim()
            self._least, self._returned = self._size(), self._kept()
            self._writer.add(SlotField.RETURNED_BYTES, max(0, size - self._least))

    def _publish(self) -> None:
        # What is free and was returned takes no memory until it is used again.
        kept = self._kept()
        self._returned = min(self._returned, kept)
        words = self._writer.words
        words[SlotField.HEAP_KEPT] = kept - self._returned
        words[SlotField.MODULES] = max(0, len(sys.modules) - self._modules)

    def _requests(self) -> int:
        words = self._writer.words
        return sum(words[SlotField.DURATIONS : SlotField.DURATIONS + BUCKETS])
