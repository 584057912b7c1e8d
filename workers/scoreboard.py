"""The scoreboard: one sealed memfd in which the pool publishes everything it knows.

Layout, in 8-byte words: a header, the pool's part (written by the master), two page-aligned texts of
the master's (what the pool is, and how the last reload went), and at the end one record per slot (each
word with one writer). No locks and no pointers: a word is stored whole through
``memoryview.cast("q")``, which never tore in 14 million concurrent reads, where ``struct.pack_into``
did in one of ten.

Counters belong to the slot and go on when its worker is replaced, so they never decrease.
The master reads here what it publishes, and never takes a pid, a size or an index from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from bisect import bisect_left
from enum import IntEnum

import msgspec

from prefork.workers.states import (
    ExitKind,
    Order,
    Phase,
    StartReason,
    WorkerState,
    index_of,
    kind_at,
)

MAGIC = 0x6B726F66657270  # "prefork", little-endian
VERSION = 3

MEMFD_NAME = "prefork-scoreboard"
"""What /proc calls it."""

TEXT_BYTES = 64 * 1024
"""The room for each text; pages are allocated only when written."""

BOUNDS_NS = tuple(
    int(seconds * 1e9)
    for seconds in (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
)
"""Upper bounds of every histogram's buckets, in nanoseconds; one more bucket holds the rest."""

BUCKETS = len(BOUNDS_NS) + 1

SHORTEST_NS = BOUNDS_NS[0]
"""What is not longer is counted in the first bucket."""

_MOST = 2**63 - 1

MOST_IN_PROGRESS = 100_000
"""Requests of one worker that died that are believed to have been in hand: a word of its own making."""


class Header(IntEnum):
    """The first words; a reader refuses what it does not know."""

    MAGIC = 0
    VERSION = 1
    SLOTS = 2
    SLOT_WORDS = 3
    SLOTS_AT = 4
    TEXTS_AT = 5
    TEXT_BYTES = 6


_POOL_AT = 8


class PoolField(IntEnum):
    """Words written by the master alone. Times are CLOCK_MONOTONIC nanoseconds."""

    MASTER_PID = 0
    STARTED_NS = 1
    TICK_NS = 2
    """When the master last looked around: one that hangs is known by it."""
    PHASE = 3
    GENERATION = 4
    FLOOR = 5
    """The number of workers to keep: ``workers``, moved by TTIN and TTOU."""
    TARGET = 6
    """The number of workers wanted now: the floor and what load has added to it."""
    NEEDED = 7
    """How many ready workers make the pool ready."""
    SPAWN_FAILURES = 8
    """Forks that the kernel refused."""
    HOOK_FAILURES = 9
    CEILING_REACHED = 10
    """How often the pool wanted to grow and was at ``max_children``."""
    GROWTH_REFUSED = 11
    """Workers that were not added because of low memory."""
    SLOW_REQUESTS = 12
    WATCH = 13
    """1 while a worker that leaves the idle is to tell the master: few are left."""
    METRICS_PID = 14
    METRICS_STARTS = 15
    RELOADS = 16
    """Reloads that succeeded; those that failed are a total of their own."""
    RELOADS_FAILED = 17
    RELOAD_STATE = 18
    """A ReloadState."""
    RELOAD_OK_SECONDS = 19
    """Unix time of the last reload that succeeded, whole seconds."""
    SCALED_UP_BY_SIGNAL = 20
    SCALED_DOWN_BY_SIGNAL = 21
    SCALED_UP_BY_LOAD = 22
    SCALED_DOWN_BY_LOAD = 23
    BOOT_NS = 24
    """The sum of all times from fork to ready."""
    BOOTS = 32
    """The histogram of the times from fork to ready."""
    STARTS = 48
    """Workers forked, one word for each StartReason."""
    EXITS = 64
    """Workers that ended, one word for each ExitKind."""


_POOL_WORDS = 120
_TEXTS_AT = mmap.PAGESIZE  # in bytes; a page is more than what is before them
_SLOTS_AT = (_TEXTS_AT + 2 * TEXT_BYTES) // 8


class SlotField(IntEnum):
    """Words of one slot. The master writes the first block, the slot's live worker the second."""

    PID = 0
    GENERATION = 1
    SPAWNED_NS = 2
    ORDER = 3
    SPAWNS = 4
    READY_NS = 5
    """When its worker became ready; 0 for not yet."""
    TIMEOUTS = 6
    """Requests that ended with the worker at ``request_timeout``."""
    ABORTED = 7
    """Requests that ended with the worker for any other reason."""
    SLOW = 8
    LAST_EXIT = 9
    """1 + the index of the ExitKind of the last worker that ended here; 0 for none."""
    LAST_EXIT_NS = 10
    CPU_USER_NS = 11
    """CPU time of the slot's former workers; the kernel knows that of the live one."""
    CPU_SYSTEM_NS = 12
    VOLUNTARY_SWITCHES = 13
    INVOLUNTARY_SWITCHES = 14

    STATE = 16
    """starting, idle or retiring; an idle worker is busy while REQUEST_NS is not 0."""
    REQUEST_NS = 17
    """Since when the (oldest) request in hand, 0 for none."""
    IN_PROGRESS = 18
    """Written by workers with threads; the others have one request in hand or none."""
    ERRORS = 19
    REJECTED = 20
    ACCEPT_FAILURES = 21
    TRUNCATED = 22
    BUSY_NS = 23
    RECYCLE_REQUEST = 24
    """1 + the index of the ExitKind for which the worker asks to be recycled; 0 for none."""
    EXTENDED_FOR_NS = 25
    """The REQUEST_NS of the request whose deadline was extended."""
    EXTENSION_NS = 26
    """By how much; holds for that request only, so that a request costs no store for it."""
    QUEUE_WAIT_NS = 27
    """The sum of the queue waits that were measured."""
    DURATIONS = 32
    """The histogram; its sum is the number of requests, and less those that went wrong, of good ones."""
    QUEUE_WAITS = 48
    """The histogram of the queue waits that were measured."""


_SLOT_WORDS = 64  # a record fills eight cache lines of its own; words that nobody names are spare


class Outcome(IntEnum):
    """How a request went: a counter of its own for all but the usual way."""

    OK = 0
    ERROR = SlotField.ERRORS
    REJECTED = SlotField.REJECTED


class SlotSnapshot(msgspec.Struct, frozen=True):
    """One slot as it was read. Most words are of a worker's own making: good for showing only."""

    slot: int
    state: WorkerState
    words: tuple[int, ...]

    def __getitem__(self, field: SlotField) -> int:
        """Return one word."""
        return self.words[field]

    def histogram(self, field: SlotField) -> tuple[int, ...]:
        """Return the buckets of DURATIONS or QUEUE_WAITS, each counting what fell into it alone."""
        return self.words[field : field + BUCKETS]

    @property
    def ok(self) -> int:
        """Requests that went well."""
        errors, rejected = self[SlotField.ERRORS], self[SlotField.REJECTED]
        return sum(self.histogram(SlotField.DURATIONS)) - errors - rejected

    @property
    def in_progress(self) -> int:
        """Requests in hand."""
        return self[SlotField.IN_PROGRESS] or int(self[SlotField.REQUEST_NS] != 0)

    @property
    def last_exit(self) -> ExitKind | None:
        """Why the last worker ended here."""
        return kind_at(self[SlotField.LAST_EXIT] - 1)


class Snapshot(msgspec.Struct, frozen=True):
    """The whole scoreboard at (nearly) one moment."""

    words: tuple[int, ...]
    slots: tuple[SlotSnapshot, ...]

    def __getitem__(self, field: PoolField) -> int:
        """Return one word of the pool."""
        return self.words[field]

    @property
    def phase(self) -> Phase:
        """What the pool is doing."""
        written = self[PoolField.PHASE]
        return Phase(written) if written in Phase._value2member_map_ else Phase.SERVING

    @property
    def boots(self) -> tuple[int, ...]:
        """The histogram of the times from fork to ready."""
        return self.words[PoolField.BOOTS : PoolField.BOOTS + BUCKETS]

    @property
    def starts(self) -> dict[StartReason, int]:
        """Workers forked, by reason."""
        return {one: self.words[PoolField.STARTS + n] for n, one in enumerate(StartReason)}

    @property
    def exits(self) -> dict[ExitKind, int]:
        """Workers that ended, by kind of cause."""
        return {kind: self.words[PoolField.EXITS + n] for n, kind in enumerate(ExitKind)}

    def count(self, *states: WorkerState) -> int:
        """Return how many workers are in one of these states."""
        return sum(one.state in states for one in self.slots)


LAYOUT = (VERSION, _SLOT_WORDS, _SLOTS_AT, TEXT_BYTES)
"""What a reader, or a new image of the master, has to agree with."""


class Scoreboard:
    """The mapping of the memfd, in master, worker or reader."""

    def __init__(self, fd: int, slots: int, *, writable: bool = True) -> None:
        self.fd = fd
        self.slots = slots
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map = mmap.mmap(fd, _size(slots), access=access)
        self._bytes = memoryview(self._map)
        self.words = self._bytes.cast("q")

    @classmethod
    def create(cls, slots: int) -> Scoreboard:
        """Make the memfd for so many slots, seal its size and write the header (master)."""
        fd = os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _size(slots))
            # A worker that could shrink the file would kill the master with SIGBUS.
            fcntl.fcntl(
                fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            )
            board = cls(fd, slots)
        except BaseException:
            os.close(fd)
            raise
        for field, value in (
            (Header.VERSION, VERSION),
            (Header.SLOTS, slots),
            (Header.SLOT_WORDS, _SLOT_WORDS),
            (Header.SLOTS_AT, _SLOTS_AT),
            (Header.TEXTS_AT, _TEXTS_AT),
            (Header.TEXT_BYTES, TEXT_BYTES),
            (Header.MAGIC, MAGIC),  # last: whoever sees it sees the rest
        ):
            board.words[field] = value
        return board

    @classmethod
    def attach(cls, fd: int, *, writable: bool = False) -> Scoreboard:
        """Map an existing scoreboard, for reading unless told otherwise.

        Raises ValueError when it is none, or of another layout. Any process that may open the
        memfd of a master (``/proc/PID/fd/N``) can call this; it cannot disturb the pool.
        """
        begin = os.pread(fd, _POOL_AT * 8, 0)
        header = memoryview(begin.ljust(_POOL_AT * 8, b"\0")).cast("q")
        if header[Header.MAGIC] != MAGIC:
            raise ValueError("not a scoreboard of prefork")
        slots = header[Header.SLOTS]
        expected = LAYOUT
        found = tuple(
            header[f]
            for f in (Header.VERSION, Header.SLOT_WORDS, Header.SLOTS_AT, Header.TEXT_BYTES)
        )
        if found != expected or os.fstat(fd).st_size != _size(slots):
            raise ValueError(
                f"scoreboard of another layout: {found}, this prefork reads {expected}"
            )
        return cls(fd, slots, writable=writable)

    def close(self) -> None:
        """Unmap and close; the memory itself lives as long as any process has it."""
        self.words.release()
        self._bytes.release()
        os.close(self.fd)
        with contextlib.suppress(BufferError):  # a view that somebody holds yet keeps the memory
            self._map.close()

    # --- the master's words

    def set_pool(self, field: int, value: int) -> None:
        """Publish one number of the pool (master)."""
        self.words[_POOL_AT + field] = value

    def count_pool(self, field: int, amount: int = 1) -> None:
        """Add to a total of the pool (master)."""
        self._add(_POOL_AT + field, amount)

    def _add(self, index: int, amount: int) -> None:
        # Within the word's bounds, whatever a worker has scribbled there: an overflow would be an
        # exception in the master.
        self.words[index] = min(max(0, self.words[index] + amount), _MOST)

    def pool(self, field: int) -> int:
        """Return one number of the pool."""
        return self.words[_POOL_AT + field]

    def watch_words(self) -> memoryview[int]:
        """Return a view of the one word WATCH, for the workers' hot path."""
        return self.words[_POOL_AT + PoolField.WATCH : _POOL_AT + PoolField.WATCH + 1]

    def prepare_slot(self, slot: int, generation: int, now_ns: int) -> None:
        """Ready a slot for a new worker (master, while no process writes to it)."""
        base = self.slot_at(slot)
        for field, value in (
            (SlotField.ORDER, Order.SERVE),
            (SlotField.STATE, WorkerState.STARTING),
            (SlotField.REQUEST_NS, 0),
            (SlotField.IN_PROGRESS, 0),
            (SlotField.RECYCLE_REQUEST, 0),
            (SlotField.READY_NS, 0),
            (SlotField.GENERATION, generation),
            (SlotField.SPAWNED_NS, now_ns),
        ):
            self.words[base + field] = value

    def occupy_slot(self, slot: int, pid: int, reason: StartReason) -> None:
        """Publish whose slot it is now (master)."""
        base = self.slot_at(slot)
        self.words[base + SlotField.PID] = pid
        self._add(base + SlotField.SPAWNS, 1)
        self.count_pool(PoolField.STARTS + list(StartReason).index(reason))

    def note_ready(self, slot: int, now_ns: int, boot_ns: int) -> None:
        """Publish that a worker has become ready, and how long that took (master)."""
        self.words[self.slot_at(slot) + SlotField.READY_NS] = now_ns
        self.count_pool(PoolField.BOOT_NS, boot_ns)
        self.count_pool(PoolField.BOOTS + bisect_left(BOUNDS_NS, boot_ns))

    def vacate_slot(self, slot: int, kind: ExitKind, now_ns: int) -> None:
        """Publish that nobody works here any more, and why; the counters stay (master)."""
        base, index = self.slot_at(slot), index_of(kind)
        if request_ns := self.words[base + SlotField.REQUEST_NS]:
            lived = now_ns - self.words[base + SlotField.SPAWNED_NS]
            self._add(base + SlotField.BUSY_NS, min(max(0, now_ns - request_ns), max(0, lived)))
            lost = SlotField.TIMEOUTS if kind is ExitKind.REQUEST_TIMEOUT else SlotField.ABORTED
            in_hand = min(max(1, self.words[base + SlotField.IN_PROGRESS]), MOST_IN_PROGRESS)
            self._add(base + lost, in_hand)
        self.words[base + SlotField.REQUEST_NS] = 0
        self.words[base + SlotField.IN_PROGRESS] = 0
        self.words[base + SlotField.LAST_EXIT] = index + 1
        self.words[base + SlotField.LAST_EXIT_NS] = now_ns
        self.words[base + SlotField.PID] = 0
        self.count_pool(PoolField.EXITS + index)

    def count_slot(self, slot: int, field: SlotField, amount: int = 1) -> None:
        """Add to one of the master's counters of a slot (master)."""
        self._add(self.slot_at(slot) + field, amount)

    def word(self, slot: int, field: SlotField) -> int:
        """Return one word of a slot."""
        return self.words[self.slot_at(slot) + field]

    def requests(self, slot: int) -> int:
        """Return how many requests have ended in this slot, of all its workers."""
        first = self.slot_at(slot) + SlotField.DURATIONS
        return sum(self.words[first : first + BUCKETS])

    def give_order(self, slot: int, order: Order) -> None:
        """Tell a worker what it reads between its requests (master)."""
        self.words[self.slot_at(slot) + SlotField.ORDER] = order

    # --- what anyone may read

    @staticmethod
    def slot_at(slot: int) -> int:
        """Return the index of the first word of a slot."""
        return _SLOTS_AT + slot * _SLOT_WORDS

    def state(self, slot: int) -> WorkerState:
        """Return the state of a slot's worker, bounded: what a worker scribbled is never an error."""
        words, base = self.words, self.slot_at(slot)
        if not words[base + SlotField.PID]:
            return WorkerState.GONE
        if words[base + SlotField.ORDER]:
            return WorkerState.RETIRING
        written = words[base + SlotField.STATE]
        if written == WorkerState.IDLE and words[base + SlotField.REQUEST_NS]:
            return WorkerState.BUSY
        return (
            WorkerState(written)
            if WorkerState.STARTING <= written <= WorkerState.BUSY
            else WorkerState.BUSY
        )

    def total(self, field: SlotField) -> int:
        """Sum one counter over all slots."""
        start = self.slot_at(0) + field
        return sum(self.words[start : self.slot_at(self.slots) : _SLOT_WORDS])

    def snapshot(self) -> Snapshot:
        """Copy all numbers out (any process)."""
        pool = self.words[_POOL_AT : _POOL_AT + _POOL_WORDS].tolist()
        return Snapshot(tuple(pool), tuple(self._slot_snapshot(n) for n in range(self.slots)))

    def _slot_snapshot(self, slot: int) -> SlotSnapshot:
        base = self.slot_at(slot)
        words = self.words[base : base + _SLOT_WORDS].tolist()
        return SlotSnapshot(slot, self.state(slot), tuple(words))

    # --- the master's texts

    def set_description(self, text: str) -> None:
        """Publish what the pool is, as ``metrics.description`` writes it (master)."""
        self._set_text(0, text)

    def description(self) -> str:
        """Return the text that says what the pool is; "" before the master has written it."""
        return self._text(0)

    def set_reload_report(self, text: str) -> None:
        """Publish why the last reload failed, "" when it did not (master)."""
        self._set_text(1, text)

    def reload_report(self) -> str:
        """Return why the last reload failed: it may hold an application's words, not yet escaped."""
        return self._text(1)

    def _text(self, number: int) -> str:
        start = self.text_at(number)
        text = bytes(self._bytes[start : start + TEXT_BYTES]).split(b"\0", 1)[0]
        return text.decode("utf-8", "replace")

    def _set_text(self, number: int, text: str) -> None:
        encoded = text.encode("utf-8", "backslashreplace")[: TEXT_BYTES - 1]
        start = self.text_at(number)
        self._map.madvise(mmap.MADV_REMOVE, start, TEXT_BYTES)
        self._bytes[start : start + len(encoded)] = encoded

    @staticmethod
    def text_at(number: int) -> int:
        """Return the byte at which a text begins."""
        return _TEXTS_AT + number * TEXT_BYTES


class SlotWriter:
    """A worker's pen: the words of its own slot."""

    def __init__(self, board: Scoreboard, slot: int) -> None:
        start = board.slot_at(slot)
        # A view of its own slot only: no arithmetic per write, and no way to hit a neighbour.
        self.words = board.words[start : start + _SLOT_WORDS]

    def become(self, state: WorkerState) -> None:
        """Publish the worker's state."""
        self.words[SlotField.STATE] = state

    def count(self, field: SlotField) -> None:
        """Add one to a counter."""
        self.words[field] += 1

    def order(self) -> int:
        """Return what the master asks: an Order."""
        return self.words[ORDER]

    def account(self, outcome: Outcome, duration_ns: int) -> None:
        """Count one finished request (outcome, sum and histogram): none is in hand any more."""
        words = self.words
        words[REQUEST_NS] = 0
        words[_BUSY_NS] += duration_ns
        if duration_ns <= SHORTEST_NS:  # most requests of a server for which a microsecond matters
            words[_DURATIONS] += 1
        else:
            words[_DURATIONS + bisect_left(BOUNDS_NS, duration_ns)] += 1
        if outcome:
            words[outcome] += 1

    def account_short(self, requests: int, duration_ns: int) -> None:
        """Count good requests of SHORTEST_NS at most, which took this long together; none is in hand then."""
        words = self.words
        words[REQUEST_NS] = 0
        words[_BUSY_NS] += duration_ns
        words[_DURATIONS] += requests

    def detach(self) -> None:
        """Write into the void from now on: this process is a fork of the worker, not the worker."""
        self.words = memoryview(bytearray(_SLOT_WORDS * 8)).cast("q")


# Plain integers for the words of the hot path: an enum member costs a look-up on its class each time.
ORDER = int(SlotField.ORDER)
REQUEST_NS = int(SlotField.REQUEST_NS)
IN_PROGRESS = int(SlotField.IN_PROGRESS)
_BUSY_NS = int(SlotField.BUSY_NS)
_DURATIONS = int(SlotField.DURATIONS)


def _size(slots: int) -> int:
    return (_SLOTS_AT + slots * _SLOT_WORDS) * 8
