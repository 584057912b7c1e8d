"""The scoreboard: shared memory in which a pool publishes what it knows.

The layout, in 8-byte words: a header; the words of the pool; two texts, each on pages of its own;
and one record of words for each slot. Any process that may open the memory reads it: the master for
its decisions, the metrics process, and the commands from outside, also while the master hangs.

**Each word has one writer.** The master writes the pool's words and the first block of each slot;
the worker that lives in a slot writes the second block. The master writes there, too, but only
while no worker does: after it has collected one and before it forks the next. So no two processes
ever add to the same word, and no count is lost.

**No locks.** A process can be killed between any two instructions. If it held a lock then, the
others would wait for ever, and the master must never wait. So a reader can meet a moment between
two stores: a request is already in the histogram of durations and not yet counted as an error.
Readers take that into account. What they subtract they clip at 0, and what must not fall they
remember.

**Plain words.** Without locks a word has to be stored whole. A ``memoryview`` cast to "q" does so:
one store of 8 aligned bytes, of which 14 million concurrent reads saw none torn.
``struct.pack_into()`` writes byte by byte: one read of ten was torn.

**Nothing is believed.** A worker runs the application, and a stray write of a C library can hit any
byte. The master therefore takes no pid, no size and no index from here. What it does read of a
worker, a state, an instant or a wish, is bounded first: ``state()`` returns a state whatever stands
there, and ``_add()`` stays within the range of a word. A worker that scribbles over everything
spoils numbers, and nothing else. The numbers of a slot are right again when the slot gets its next
worker (workers/ledger.py). The memory is sealed against resizing, because a process that
reads beyond the end of its mapping is killed (SIGBUS).

Counters belong to the slot and go on with its next worker, so they never decrease.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from bisect import bisect_left
from enum import IntEnum

import msgspec

from prefork.workers.answers import COUNTS
from prefork.workers.cancel import CancelReason
from prefork.workers.ledger import Growth, Ledger
from prefork.workers.states import (
    ExitCause,
    ExitKind,
    Order,
    Phase,
    Rejection,
    SaturationCause,
    StartReason,
    Usage,
    WorkerState,
    index_of,
    kind_at,
)

MAGIC = 0x6B726F66657270  # "prefork", little-endian
VERSION = 7

MEMFD_NAME = "prefork-scoreboard"
"""The name of the memory in /proc."""

TEXT_BYTES = 64 * 1024
"""The room for each text. The kernel allocates a page when it is first written to."""

BOUNDS_NS = tuple(
    int(seconds * 1e9)
    for seconds in (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
)
"""Upper bounds of every histogram's buckets, in nanoseconds; one more bucket holds the rest."""

BUCKETS = len(BOUNDS_NS) + 1

SHORTEST_NS = BOUNDS_NS[0]
"""The longest duration that counts in the first bucket."""

MOST = 2**63 - 1
"""The largest value of a word."""

MOST_IN_PROGRESS = 100_000
"""The largest number of requests in hand that is believed of one worker."""


class Header(IntEnum):
    """The first words. A reader refuses a memory in which they are not what it knows."""

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
    """When the master's last tick was. A master that hangs is known by its age."""
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
    """How often the pool wanted to grow and had ``max_children`` workers already."""
    GROWTH_REFUSED = 11
    """Workers that were not added because of low memory."""
    SLOW_REQUESTS = 12
    WATCH = 13
    """1 while few workers are idle: a worker that becomes busy then wakes the master."""
    METRICS_PID = 14
    METRICS_STARTS = 15
    RELOADS = 16
    """Reloads that succeeded."""
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
    LISTENERS_CLOSED = 25
    """Listeners that let no client in although the pool serves: a worker has closed them for all."""
    SATURATION = 26
    """A SaturationCause."""
    SATURATED_NS = 27
    """For how long every worker has been busy while clients waited; 0 with the cause NONE."""
    SCALED_UP_BY_BOX = 28
    SCALED_DOWN_BY_BOX = 29
    CEILING = 30
    """The largest number of workers now: ``max_children``, or less where that follows the CPUs."""
    USABLE_CPUS = 31
    """The CPUs that the master last found usable; 0 where the pool does not follow them."""
    BOOTS = 32
    """The histogram of the times from fork to ready."""
    STARTS = 48
    """Workers forked, one word for each StartReason."""
    EXITS = 64
    """Workers that ended, one word for each ExitKind."""

    # The lot's words: the lot process is their only writer (prefork/parking/lot.py).
    PARKED = 96
    """Connections that the lot holds now."""
    PARKED_TOTAL = 97
    RESUMED_TOTAL = 98
    PARKED_EVICTED = 99
    """Idle connections that were closed because there were ``max_parked``."""
    PARKED_TIMED_OUT = 100
    PARKED_LEFT = 101
    """Idle connections that their clients closed."""
    PARKED_CLOSED = 102
    """Idle connections that a stop closed."""
    PARKED_LOST = 103
    """Connections that could not be given to a worker."""
    LOT_PID = 104
    """The pid of the lot process, written by the master; 0 while there is none."""
    LOT_STARTS = 105
    """Lot processes forked, written by the master."""

    QUIET_UNTIL_NS = 106
    """Until when the master need not tick, because it loads new code in place; 0 while it ticks."""
    RESUMED_WAITING = 107
    """Connections in the lot whose clients have spoken, and for which its link has no room; written by the lot."""


_POOL_WORDS = 120
_TEXTS_AT = mmap.PAGESIZE  # in bytes; the header and the pool's words fit into one page
_SLOTS_AT = (_TEXTS_AT + 2 * TEXT_BYTES) // 8


class SlotField(IntEnum):
    """Words of one slot. The master writes the first block, the slot's live worker the second."""

    PID = 0
    GENERATION = 1
    SPAWNED_NS = 2
    ORDER = 3
    SPAWNS = 4
    READY_NS = 5
    """When the worker became ready; 0 before that."""
    TIMEOUTS = 6
    """Requests that ended with the worker at ``request_timeout``."""
    ABORTED = 7
    """Requests that ended with the worker for any other reason."""
    SLOW = 8
    LAST_EXIT = 9
    """How the slot's last worker ended, as ``_exit_word()`` writes it; 0 where none has ended."""
    LAST_EXIT_NS = 10
    CPU_USER_NS = 11
    """CPU time of the slot's workers that have ended. The kernel counts that of the live one."""
    CPU_SYSTEM_NS = 12
    VOLUNTARY_SWITCHES = 13
    INVOLUNTARY_SWITCHES = 14
    CANCEL = 15
    """Which request the master asks to end, and why: one word for both (workers/cancel.py)."""

    STATE = 16
    """A WorkerState: starting, idle or retiring. Idle means busy while REQUEST_NS is not 0."""
    REQUEST_NS = 17
    """Since when the oldest request in hand has been in hand; 0 for none."""
    IN_PROGRESS = 18
    """How many requests are in hand. Only workers with threads write it."""
    ERRORS = 19
    REJECTED = 20
    ACCEPT_FAILURES = 21
    TRUNCATED = 22
    BUSY_NS = 23
    RECYCLE_REQUEST = 24
    """1 + the index of the ExitKind for which the worker asks to be replaced; 0 for none."""
    EXTENDED_FOR_NS = 25
    """The REQUEST_NS of the request whose deadline was extended."""
    EXTENSION_NS = 26
    """By how much it was extended: for that request only, so the next one needs no store."""
    QUEUE_WAIT_NS = 27
    """The sum of the queue waits that were measured; most are not (workers/waits.py)."""
    PARK_FAILURES = 28
    """Connections that the worker closed because it could not park them."""
    CLIENT_TIMEOUTS = 29
    """Requests that ended because the client kept the handler waiting for longer than its timeout."""
    DURATIONS = 32
    """The histogram of durations. Its sum is the number of finished requests, good and bad."""
    QUEUE_WAITS = 48
    """The histogram of the queue waits that were measured."""
    TLS_HANDSHAKES = 72
    """Handshakes that succeeded, one word for each HandshakeKind."""
    TLS_HANDSHAKE_NS = 76
    """The sum of the times of these handshakes."""
    CANCELLED = 80
    """Requests that were ended before their worker was killed, one word for each CancelReason."""
    CLIENT = 86
    """The client that the worker serves, as a number; only with ``max_per_client`` (workers/worker/admission.py)."""
    CANCEL_HEARD = 88
    """The last word CANCEL for which the worker has raised all that it asks for."""

    HEAP_KEPT = 89
    """Free bytes that malloc() keeps, as of the worker's last rest (workers/worker/trimming.py)."""
    MODULES = 90
    """Modules that the worker has imported since its fork, as of its last rest."""
    RETURNED_BYTES = 91
    """Bytes that resting workers have returned to the system."""
    REJECTIONS = 96
    """Requests that were rejected, one word for each Rejection. VERIFY has what is left of REJECTED."""
    ANSWERS = 112
    """Answers of HTTP, by method and class of the status (workers/answers.py)."""


SLOT_WORDS = (
    144  # eighteen cache lines, which no other slot's worker writes to; some words are spare
)

CANCELLED_FIELDS = range(SlotField.CANCELLED, SlotField.CANCELLED + len(CancelReason))
"""The words that count cancelled requests, by the position of the reason."""


class HandshakeKind(IntEnum):
    """The handshakes that are counted apart; the value is the place of the word after TLS_HANDSHAKES."""

    TLS_1_2 = 0
    TLS_1_2_RESUMED = 1
    TLS_1_3 = 2
    TLS_1_3_RESUMED = 3


_COUNT = Growth(per_second=10**7, burst=MOST_IN_PROGRESS)
_TIME = Growth(per_second=10**9 * 10_000, burst=2**50)
_MEMORY = Growth(per_second=2**36, burst=2**50)
_WAIT = Growth(per_second=10**15, burst=2**56)

GROWTH: dict[int, Growth] = {
    **dict.fromkeys(range(SlotField.ERRORS, SlotField.BUSY_NS), _COUNT),
    **dict.fromkeys(range(SlotField.DURATIONS, SlotField.DURATIONS + BUCKETS), _COUNT),
    **dict.fromkeys(range(SlotField.QUEUE_WAITS, SlotField.QUEUE_WAITS + BUCKETS), _COUNT),
    **dict.fromkeys(range(SlotField.TIMEOUTS, SlotField.LAST_EXIT), _COUNT),
    **dict.fromkeys(range(SlotField.TLS_HANDSHAKES, SlotField.TLS_HANDSHAKE_NS), _COUNT),
    **dict.fromkeys(range(SlotField.REJECTIONS, SlotField.REJECTIONS + len(Rejection)), _COUNT),
    **dict.fromkeys(range(SlotField.ANSWERS, SlotField.ANSWERS + COUNTS), _COUNT),
    **dict.fromkeys((SlotField.VOLUNTARY_SWITCHES, SlotField.INVOLUNTARY_SWITCHES), _COUNT),
    **dict.fromkeys((SlotField.SPAWNS, SlotField.PARK_FAILURES, SlotField.CLIENT_TIMEOUTS), _COUNT),
    **dict.fromkeys(CANCELLED_FIELDS, _COUNT),
    **dict.fromkeys((SlotField.CPU_USER_NS, SlotField.CPU_SYSTEM_NS, SlotField.BUSY_NS), _TIME),
    SlotField.TLS_HANDSHAKE_NS: _TIME,
    SlotField.RETURNED_BYTES: _MEMORY,
    SlotField.QUEUE_WAIT_NS: _WAIT,
}
"""How fast the counters of a slot can grow: ten million events a second, ten thousand threads at a
time, and a queue of some thousand clients that have waited for an hour.
"""


def _exit_word(index: int, status: int | None) -> int:
    """Return the word for an end: 1 + the index of its kind, and above the lowest byte 1 + its status if known."""
    return index + 1 + (0 if status is None else ((status & 0xFF) + 1) << 8)


class SlotSnapshot(msgspec.Struct, frozen=True):
    """One slot as it was read. A worker wrote most of the words, so they are for showing only."""

    slot: int
    state: WorkerState
    words: tuple[int, ...]

    def __getitem__(self, field: int) -> int:
        """Return one word, by its SlotField."""
        return self.words[field]

    def histogram(self, field: SlotField) -> tuple[int, ...]:
        """Return the buckets of DURATIONS or QUEUE_WAITS, not cumulative."""
        return self.words[field : field + BUCKETS]

    @property
    def ok(self) -> int:
        """Requests that went well; negative for a moment, or after a stray write."""
        others = self[SlotField.ERRORS] + self[SlotField.REJECTED] + self[SlotField.CLIENT_TIMEOUTS]
        return sum(self.histogram(SlotField.DURATIONS)) - others - self.cancelled

    @property
    def rejections(self) -> dict[Rejection, int]:
        """Rejected requests by reason; negative for a moment, or after a stray write."""
        counts = {one: self.words[SlotField.REJECTIONS + n] for n, one in enumerate(Rejection)}
        counts[Rejection.VERIFY] = 0
        by_edge = sum(counts.values())
        return {**counts, Rejection.VERIFY: self[SlotField.REJECTED] - by_edge}

    @property
    def cancelled(self) -> int:
        """Requests that were asked to end, and have ended for that."""
        return sum(self.words[field] for field in CANCELLED_FIELDS)

    @property
    def in_progress(self) -> int:
        """Requests in hand."""
        return self[SlotField.IN_PROGRESS] or int(self[SlotField.REQUEST_NS] != 0)

    @property
    def last_exit(self) -> ExitKind | None:
        """Why the slot's last worker ended; None where none has."""
        return kind_at((self[SlotField.LAST_EXIT] & 0xFF) - 1)

    @property
    def last_cause(self) -> ExitCause | None:
        """The same with the exit status or the signal, as far as the word makes sense."""
        kind, status = self.last_exit, (self[SlotField.LAST_EXIT] >> 8) - 1
        if kind is None:
            return None
        return ExitCause(kind, status if 0 <= status <= 0xFF else None)


class Snapshot(msgspec.Struct, frozen=True):
    """The whole scoreboard at nearly one moment: it is copied while processes write to it."""

    words: tuple[int, ...]
    slots: tuple[SlotSnapshot, ...]

    def __getitem__(self, field: PoolField) -> int:
        """Return one word of the pool."""
        return self.words[field]

    @property
    def phase(self) -> Phase:
        """What the pool is doing; serving where the word makes no sense."""
        written = self[PoolField.PHASE]
        return Phase(written) if written in Phase._value2member_map_ else Phase.SERVING

    @property
    def saturation(self) -> SaturationCause:
        """Why the pool cannot keep up; NONE where the word makes no sense."""
        written = self[PoolField.SATURATION]
        known = written in SaturationCause._value2member_map_
        return SaturationCause(written) if known else SaturationCause.NONE

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


LAYOUT = (VERSION, SLOT_WORDS, _SLOTS_AT, TEXT_BYTES)
"""What has to be equal for a reader, or a new image of the master, to use an existing memory."""


class Scoreboard:
    """The mapped memory, in the master, in a worker or in a reader."""

    def __init__(
        self, fd: int, slots: int, *, writable: bool = True, counters: bytes = b""
    ) -> None:
        self.fd = fd
        self.slots = slots
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map = mmap.mmap(fd, _size(slots), access=access)
        self._bytes = memoryview(self._map)
        self.words = self._bytes.cast("q")
        self.ledger = Ledger(GROWTH, slots if writable else 0, SLOT_WORDS, counters)
        """What is believed of the slots' counters (master)."""
        self.description = Text(self._map, _TEXTS_AT)
        """What the pool is, as ``metrics.description`` writes it."""
        self.reload_report = Text(self._map, _TEXTS_AT + TEXT_BYTES)
        """Why the last reload failed, "" where it did not. It can hold an application's words."""

    @classmethod
    def create(cls, slots: int) -> Scoreboard:
        """Make the memory for this many slots, seal its size and write the header (master)."""
        fd = os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _size(slots))
            # A worker that could shrink the memory would kill the master with SIGBUS.
            fcntl.fcntl(
                fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            )
            board = cls(fd, slots)
        except BaseException:
            os.close(fd)
            raise
        board.write_header()
        return board

    @classmethod
    def adopt(
        cls, fd: int, slots: int, layout: tuple[int, ...], counters: bytes = b""
    ) -> Scoreboard:
        """Map the memory that an earlier image of this master has made (next image).

        slots, layout, counters: what that image has handed over. The memory is not asked: any worker may have
        written to it. Only its size is as trustworthy as the state, because it is sealed. The
        header is written anew, so that readers from outside find it whole. Raises ValueError for
        another layout than LAYOUT, and for a memory that does not have this many slots.
        """
        if layout != LAYOUT:
            raise ValueError(f"scoreboard of another layout: {layout}, this prefork has {LAYOUT}")
        if (found := os.fstat(fd).st_size) != _size(slots):
            raise ValueError(
                f"scoreboard of {found} bytes, where {slots} slots take {_size(slots)}"
            )
        board = cls(fd, slots, counters=counters)
        board.write_header()
        return board

    @classmethod
    def attach(cls, fd: int) -> Scoreboard:
        """Map the scoreboard of a running master, for reading (any process).

        Any process that may open the memory of a master (``/proc/PID/fd/N``) can call this, and
        cannot disturb the pool. Raises ValueError for a memory that is no scoreboard, or of another
        layout.
        """
        begin = os.pread(fd, _POOL_AT * 8, 0)
        header = memoryview(begin.ljust(_POOL_AT * 8, b"\0")).cast("q")
        if header[Header.MAGIC] != MAGIC:
            raise ValueError("not a scoreboard of prefork")
        slots = header[Header.SLOTS]
        found = tuple(
            header[f]
            for f in (Header.VERSION, Header.SLOT_WORDS, Header.SLOTS_AT, Header.TEXT_BYTES)
        )
        if found != LAYOUT or os.fstat(fd).st_size != _size(slots):
            raise ValueError(f"scoreboard of another layout: {found}, this prefork reads {LAYOUT}")
        return cls(fd, slots, writable=False)

    def close(self) -> None:
        """Unmap and close. The memory itself lives as long as any process has it open."""
        self.words.release()
        self._bytes.release()
        os.close(self.fd)
        with contextlib.suppress(BufferError):  # a view that is still held keeps the memory mapped
            self._map.close()

    # --- the master's words

    def write_header(self) -> None:
        """Write the words by which readers from outside know a scoreboard (master).

        The master writes them at every tick: a worker that has written over them hides the pool
        from the commands, and only until then.
        """
        for field, value in (
            (Header.VERSION, VERSION),
            (Header.SLOTS, self.slots),
            (Header.SLOT_WORDS, SLOT_WORDS),
            (Header.SLOTS_AT, _SLOTS_AT),
            (Header.TEXTS_AT, _TEXTS_AT),
            (Header.TEXT_BYTES, TEXT_BYTES),
            (Header.MAGIC, MAGIC),  # last: a reader that sees it sees the rest
        ):
            self.words[field] = value

    def set_pool(self, field: int, value: int) -> None:
        """Publish one number of the pool (master)."""
        self.words[_POOL_AT + field] = value

    def count_pool(self, field: int, amount: int = 1) -> None:
        """Add to a total of the pool (master)."""
        self._add(_POOL_AT + field, amount)

    def _add(self, index: int, amount: int) -> None:
        # Within the range of a word, whatever stands there: an overflow would be an exception in
        # the master.
        self.words[index] = min(max(0, self.words[index] + amount), MOST)

    def pool(self, field: int) -> int:
        """Return one number of the pool."""
        return self.words[_POOL_AT + field]

    def pool_word(self, field: PoolField) -> memoryview[int]:
        """Return a view of one word of the pool, for the workers' hot path."""
        return self.words[_POOL_AT + field : _POOL_AT + field + 1]

    def prepare_slot(self, slot: int, generation: int, now_ns: int) -> None:
        """Prepare a slot for a new worker (master, while no worker writes to it)."""
        base = self.slot_at(slot)
        for field, value in (
            (SlotField.ORDER, Order.SERVE),
            (SlotField.STATE, WorkerState.STARTING),
            (SlotField.REQUEST_NS, 0),
            (SlotField.IN_PROGRESS, 0),
            (SlotField.RECYCLE_REQUEST, 0),
            (SlotField.CANCEL, 0),
            (SlotField.CANCEL_HEARD, 0),
            (SlotField.CLIENT, 0),
            (SlotField.READY_NS, 0),
            (SlotField.GENERATION, generation),
            (SlotField.SPAWNED_NS, now_ns),
        ):
            self.words[base + field] = value
        self.ledger.settle(slot, self.words[base : base + SLOT_WORDS], now_ns)

    def occupy_slot(self, slot: int, pid: int, reason: StartReason) -> None:
        """Publish which worker is in a slot now, and count its start (master)."""
        base = self.slot_at(slot)
        self.words[base + SlotField.PID] = pid
        self._add(base + SlotField.SPAWNS, 1)
        self.count_pool(PoolField.STARTS + list(StartReason).index(reason))

    def note_ready(self, slot: int, now_ns: int, boot_ns: int) -> None:
        """Publish that a worker has become ready, and how long it took from the fork (master)."""
        self.words[self.slot_at(slot) + SlotField.READY_NS] = now_ns
        self.count_pool(PoolField.BOOT_NS, boot_ns)
        self.count_pool(PoolField.BOOTS + bisect_left(BOUNDS_NS, boot_ns))

    def vacate_slot(
        self, slot: int, kind: ExitKind, now_ns: int, status: int | None = None
    ) -> None:
        """Publish that a slot has no worker any more, and why; its counters stay (master).

        status: as ``ExitCause`` has it.

        The worker may have died with requests in hand. They count as timeouts or as aborted, and
        their time counts as busy, as far as the worker's life can have lasted.
        """
        base, index = self.slot_at(slot), index_of(kind)
        if request_ns := self.words[base + SlotField.REQUEST_NS]:
            lived = now_ns - self.words[base + SlotField.SPAWNED_NS]
            self._add(base + SlotField.BUSY_NS, min(max(0, now_ns - request_ns), max(0, lived)))
            lost = SlotField.TIMEOUTS if kind is ExitKind.REQUEST_TIMEOUT else SlotField.ABORTED
            in_hand = min(max(1, self.words[base + SlotField.IN_PROGRESS]), MOST_IN_PROGRESS)
            self._add(base + lost, in_hand)
        self.words[base + SlotField.REQUEST_NS] = 0
        self.words[base + SlotField.IN_PROGRESS] = 0
        self.words[base + SlotField.LAST_EXIT] = _exit_word(index, status)
        self.words[base + SlotField.LAST_EXIT_NS] = now_ns
        self.words[base + SlotField.PID] = 0
        self.ledger.settle(slot, self.words[base : base + SLOT_WORDS], now_ns)
        self.count_pool(PoolField.EXITS + index)

    def carry_over(self, slot: int, usage: Usage) -> None:
        """Add what the kernel counted for a worker that was just collected to its slot (master).

        Until here a reader finds these totals with the process. From now on the slot has no
        process: the pid goes last, so that a reader who finds no pid finds the totals.
        """
        for field, amount in (
            (SlotField.CPU_USER_NS, usage.user_ns),
            (SlotField.CPU_SYSTEM_NS, usage.system_ns),
            (SlotField.VOLUNTARY_SWITCHES, usage.voluntary_switches),
            (SlotField.INVOLUNTARY_SWITCHES, usage.involuntary_switches),
        ):
            self.count_slot(slot, field, amount)
        self.words[self.slot_at(slot) + SlotField.PID] = 0

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
        """Publish what a worker is to do; it reads the word between its requests (master)."""
        self.words[self.slot_at(slot) + SlotField.ORDER] = order

    # --- what anyone may read

    @staticmethod
    def slot_at(slot: int) -> int:
        """Return the index of the first word of a slot."""
        return _SLOTS_AT + slot * SLOT_WORDS

    def state(self, slot: int) -> WorkerState:
        """Return the state of a slot's worker; busy where the word is no state."""
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
            if WorkerState.STARTING <= written <= WorkerState.RETIRING
            else WorkerState.BUSY
        )

    def total(self, field: int) -> int:
        """Sum one counter over all slots."""
        start = self.slot_at(0) + field
        return sum(self.words[start : self.slot_at(self.slots) : SLOT_WORDS])

    def snapshot(self) -> Snapshot:
        """Copy all numbers out (any process)."""
        slots = tuple(self.slot_snapshot(n) for n in range(self.slots))
        return Snapshot(pool_of(self).words, slots)

    def slot_snapshot(self, slot: int) -> SlotSnapshot:
        """Copy the numbers of one slot out (any process)."""
        base = self.slot_at(slot)
        words = self.words[base : base + SLOT_WORDS].tolist()
        return SlotSnapshot(slot, self.state(slot), tuple(words))


def pool_of(board: Scoreboard) -> Snapshot:
    """Copy the words of the pool out, without those of any slot (any process)."""
    return Snapshot(tuple(board.words[_POOL_AT : _POOL_AT + _POOL_WORDS].tolist()), ())


class Text:
    """One text of the master's, at a fixed place and cut to its room.

    A reader can meet it half written. Texts are written at a start and at a reload, so the next
    look finds the whole.
    """

    def __init__(self, memory: mmap.mmap, start: int) -> None:
        self._memory = memory
        self.start = start
        """The byte at which the text begins."""

    def write(self, text: str) -> None:
        """Replace the text (master)."""
        encoded = text.encode("utf-8", "backslashreplace")[: TEXT_BYTES - 1]
        # The pages of the former text go back to the kernel, and read as zeros from then on.
        self._memory.madvise(mmap.MADV_REMOVE, self.start, TEXT_BYTES)
        self._memory[self.start : self.start + len(encoded)] = encoded

    def read(self) -> str:
        """Return the text, not escaped; "" before the master has written one."""
        room = self.start + TEXT_BYTES
        end = self._memory.find(b"\0", self.start, room)
        return self._memory[self.start : end if end >= 0 else room].decode("utf-8", "replace")


def _size(slots: int) -> int:
    return (_SLOTS_AT + slots * SLOT_WORDS) * 8
