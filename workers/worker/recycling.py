"""When a worker has served enough: the limits at which it asks to be recycled (worker).

It asks by a word of its slot and goes on serving: the master starts the next worker before it
has this one leave. So nothing is gained by counting to the very request. The limits are looked at
between two requests, or at the end of a burst of them (50 ms at most), where it costs the hot path
nothing; what is served until the master has a replacement ready is more than what a burst is late.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from time import monotonic

import msgspec

from prefork.workers.machine import Memory
from prefork.workers.scoreboard import BUCKETS, SlotField, SlotWriter
from prefork.workers.settings import Settings
from prefork.workers.states import ExitKind, index_of

MEMORY_INTERVAL = 1.0
"""Seconds between two looks at the memory, at least."""

MEMORY_SHARE = 0.01
"""The share of a worker's time that looking at its memory may take: the kernel walks all its pages for it."""

Check = Callable[[], None]


def shortened(limit: int, jitter: float, spread: float) -> int:
    """Return a worker's own limit. jitter: how much earlier at most; spread: its share of that, 0 to 1 (pure)."""
    return max(1, round(limit * (1 - jitter * spread)))


def limits_for(settings: Settings, writer: SlotWriter, ask: Callable[[], object]) -> list[Check]:
    """Return what a worker has to look at between its requests; nothing when it has no limit.

    ask: tells the master that the slot has a recycle_request.
    """
    if settings.max_requests is None and settings.max_memory is None:
        return []  # what follows would cost every worker 60 KiB of copied pages
    # Not from the random module: its state is the same in every worker.
    spread = int.from_bytes(os.urandom(4), "little") / 2**32
    reached: list[tuple[ExitKind, Callable[[], bool]]] = []
    if settings.max_requests is not None:
        most = shortened(settings.max_requests, settings.jitter, spread)
        reached.append((ExitKind.MAX_REQUESTS, RequestLimit(most, writer).is_reached))
    if settings.max_memory is not None:
        most = shortened(settings.max_memory, settings.jitter, spread)
        read = functools.partial(Memory().private, os.getpid())
        reached.append((ExitKind.MAX_MEMORY, MemoryLimit(most, read).is_reached))
    return [RecycleRequest(writer, kind, is_reached, ask).look for kind, is_reached in reached]


class RequestLimit:
    """So many requests; those in hand count, too, so that threads do not take more meanwhile."""

    def __init__(self, most: int, writer: SlotWriter) -> None:
        self._writer = writer
        self._most = most + self._taken()  # the slot's counters began with its first worker

    def is_reached(self) -> bool:
        """Tell whether the worker has taken so many."""
        return self._taken() >= self._most

    def _taken(self) -> int:
        words = self._writer.words
        finished = words[SlotField.DURATIONS : SlotField.DURATIONS + BUCKETS]
        return sum(finished) + words[SlotField.IN_PROGRESS]


class MemoryLimit(msgspec.Struct):
    """So much memory of its own; what it shares with the master would not come back with it."""

    most: int
    read: Callable[[], int | None]
    clock: Callable[[], float] = monotonic
    _next_look: float = 0.0

    def is_reached(self) -> bool:
        """Tell whether it has more; looks at most once a second, and less often where that is dear."""
        began = self.clock()
        if began < self._next_look:
            return False
        private = self.read()
        ended = self.clock()
        self._next_look = ended + max(MEMORY_INTERVAL, (ended - began) / MEMORY_SHARE)
        return private is not None and private > self.most


class RecycleRequest:
    """One limit's word to the master, said once."""

    def __init__(
        self,
        writer: SlotWriter,
        kind: ExitKind,
        is_reached: Callable[[], bool],
        ask: Callable[[], object],
    ) -> None:
        self._writer = writer
        self._kind = kind
        self._is_reached = is_reached
        self._ask = ask

    def look(self) -> None:
        """Ask to be recycled when the limit is reached and nothing was asked before."""
        if not self._writer.words[SlotField.RECYCLE_REQUEST] and self._is_reached():
            self._writer.words[SlotField.RECYCLE_REQUEST] = 1 + index_of(self._kind)
            self._ask()
