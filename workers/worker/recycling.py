"""When a worker has served enough: the limits at which it asks to be recycled (worker).

A worker asks through a word of its slot and goes on serving, because the master starts the next worker
before it has this one leave. So nothing is gained by stopping at the very request. The limits are
checked between two requests, or at the end of a burst (50 ms at most), where the check costs the hot
path nothing. A worker serves more requests while the master prepares its replacement than a burst adds.

``max_requests = 1`` is another promise: each process serves one request, so that nothing that a request
leaves in its process meets another client. There the limit is reached when the request is taken. The worker
asks at that moment, so that its successor is forked while the request runs, takes nothing afterwards, and
waits for the order to leave (``OnlyRequest``). The master asks it to leave once the request is over
(``WorkerView.is_spent``).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from time import monotonic

import msgspec

from prefork.workers.machine import Memory
from prefork.workers.scoreboard import BUCKETS, SlotField
from prefork.workers.settings import Settings
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.states import ExitKind, index_of
from prefork.workers.worker.turn import Turn

MEMORY_INTERVAL = 1.0
"""The least number of seconds between two looks at the memory."""

MEMORY_SHARE = 0.01
"""The share of a worker's time that looking at its memory may take: the kernel walks all its pages."""

Check = Callable[[], None]

_REQUESTS = frozenset(1 + index_of(kind) for kind in (ExitKind.MAX_REQUESTS, ExitKind.MAX_MEMORY))
"""What a recycle request can be, as the scoreboard has it."""


def shortened(limit: int, jitter: float, spread: float) -> int:
    """Return the limit of one worker (pure).

    jitter: the largest share of ``limit`` by which a worker may be early. spread: how much of that
    this worker takes, 0 to 1.
    """
    return max(1, round(limit * (1 - jitter * spread)))


def limits_for(settings: Settings, writer: SlotWriter, ask: Callable[[], object]) -> list[Check]:
    """Return the checks that a worker makes between its requests; none if it has no limit.

    ask: called when the slot has a recycle request; wakes the master.
    """
    if settings.max_requests is None and settings.max_memory is None:
        return []  # what follows would cost every worker 60 KiB of copied pages
    # The random module has the same state in every worker.
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
    """A number of requests. Those in hand count too, so that a worker with threads does not take more."""

    def __init__(self, most: int, writer: SlotWriter) -> None:
        self._writer = writer
        self._most = most + self._taken()  # the slot's counters began with its first worker

    def is_reached(self) -> bool:
        """Return whether the worker has taken that many."""
        return self._taken() >= self._most

    def _taken(self) -> int:
        words = self._writer.words
        finished = words[SlotField.DURATIONS : SlotField.DURATIONS + BUCKETS]
        return sum(finished) + words[SlotField.IN_PROGRESS]


class MemoryLimit(msgspec.Struct):
    """Bytes of private memory. What a worker shares with the master is not freed when the worker ends."""

    most: int
    read: Callable[[], int | None]
    clock: Callable[[], float] = monotonic
    _next_look: float = 0.0

    def is_reached(self) -> bool:
        """Return whether the worker has more; looks at most once a second, and less often if that takes long."""
        began = self.clock()
        if began < self._next_look:
            return False
        private = self.read()
        ended = self.clock()
        self._next_look = ended + max(MEMORY_INTERVAL, (ended - began) / MEMORY_SHARE)
        return private is not None and private > self.most


class OnlyRequest:
    """The one request of a worker whose ``max_requests`` is 1."""

    def __init__(self, writer: SlotWriter, turn: Turn, ask: Callable[[], object]) -> None:
        self._writer = writer
        self._turn = turn
        self._ask = ask

    def begin(self) -> None:
        """Have the turn end after this request, and the next worker be forked; called when it was taken."""
        self._turn.is_last = True
        self._turn.end()
        self._writer.words[SlotField.RECYCLE_REQUEST] = 1 + index_of(ExitKind.MAX_REQUESTS)
        self._ask()


class RecycleRequest:
    """The request that one limit makes to the master, once."""

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
        """Ask to be recycled if the limit is reached and no limit has asked before.

        A word that is no request was not written by this worker, and is written over.
        """
        if self._writer.words[SlotField.RECYCLE_REQUEST] not in _REQUESTS and self._is_reached():
            self._writer.words[SlotField.RECYCLE_REQUEST] = 1 + index_of(self._kind)
            self._ask()
