"""The scoreboard: one sealed memfd in which the pool publishes everything it knows.

Layout, in 8-byte words: a header, the pool's part (written by the master), one record per slot
(each word with one writer), and after them one page-aligned report region per slot, into which
a worker's stack dumps and last words go. No locks and no pointers: a word is stored whole
through ``memoryview.cast("q")``, which never tore in 14 million concurrent reads, where
``struct.pack_into`` did in one of ten.

Counters belong to the slot and go on when its worker is replaced, so they never decrease.
The master reads here what it publishes, and never takes a pid, a size or an index from it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from bisect import bisect_left
from dataclasses import dataclass
from enum import IntEnum

from prefork.workers.states import Order, Phase, WorkerState

MAGIC = 0x6B726F66657270  # "prefork", little-endian
VERSION = 1

REPORT_BYTES = 64 * 1024
"""One report region: a hundred frames of a dozen threads; pages are allocated only when written."""

DURATION_BOUNDS_NS = tuple(
    int(seconds * 1e9)
    for seconds in (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
)
"""Upper bounds of the request histogram's buckets, in nanoseconds; one more bucket holds the rest."""


_BUCKETS = len(DURATION_BOUNDS_NS) + 1


class Header(IntEnum):
    """The first words; a reader refuses what it does not know."""

    MAGIC = 0
    VERSION = 1
    SLOTS = 2
    SLOT_WORDS = 3
    SLOTS_AT = 4
    REPORTS_AT = 5
    REPORT_BYTES = 6


_POOL_AT = 8


class PoolField(IntEnum):
    """Words written by the master alone. Times are CLOCK_MONOTONIC nanoseconds."""

    MASTER_PID = 0
    STARTED_NS = 1
    PHASE = 2
    TARGET = 3
    GENERATION = 4
    SPAWNS = 5
    EXITS = 6
    FORK_FAILURES = 7
    HOOK_FAILURES = 8


_SLOTS_AT = 32


class SlotField(IntEnum):
    """Words of one slot. The master writes the first block, the slot's live worker the second."""

    PID = 0
    GENERATION = 1
    SPAWNED_NS = 2
    ORDER = 3
    SPAWNS = 4

    STATE = 8
    """starting, idle or retiring; an idle worker is busy while REQUEST_NS is not 0."""
    REQUEST_NS = 9
    """Since when the (oldest) request in hand, 0 for none."""
    IN_PROGRESS = 10
    """Written by workers with threads; the others have one request in hand or none."""
    ERRORS = 12
    REJECTED = 13
    ACCEPT_FAILURES = 14
    TRUNCATED = 15
    BUSY_NS = 16
    DURATIONS = 17
    """The histogram; its sum is the number of requests, and less those that went wrong, of good ones."""


_SLOT_WORDS = (
    32  # DURATIONS and its 14 buckets end at 31; a record fills four cache lines of its own
)


class Outcome(IntEnum):
    """How a request went: a counter of its own for all but the usual way."""

    OK = 0
    ERROR = SlotField.ERRORS
    REJECTED = SlotField.REJECTED


@dataclass(frozen=True, slots=True)
class SlotSnapshot:
    """One slot as it was read: numbers of a worker's own making, good for showing only."""

    slot: int
    pid: int
    generation: int
    spawned_ns: int
    spawns: int
    state: WorkerState
    request_ns: int
    in_progress: int
    ok: int
    errors: int
    rejected: int
    accept_failures: int
    truncated: int
    busy_ns: int
    durations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole scoreboard at (nearly) one moment."""

    master_pid: int
    started_ns: int
    phase: Phase
    target: int
    generation: int
    spawns: int
    exits: int
    fork_failures: int
    hook_failures: int
    slots: tuple[SlotSnapshot, ...]


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
        fd = os.memfd_create("prefork-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
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
            (Header.REPORTS_AT, _reports_at(slots)),
            (Header.REPORT_BYTES, REPORT_BYTES),
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
        expected = (VERSION, _SLOT_WORDS, _SLOTS_AT, REPORT_BYTES)
        found = tuple(
            header[f]
            for f in (Header.VERSION, Header.SLOT_WORDS, Header.SLOTS_AT, Header.REPORT_BYTES)
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
        self._map.close()
        os.close(self.fd)

    # --- the master's words

    def set_pool(self, field: PoolField, value: int) -> None:
        """Publish one number of the pool (master)."""
        self.words[_POOL_AT + field] = value

    def count_pool(self, field: PoolField) -> None:
        """Add one to a total of the pool (master)."""
        self.words[_POOL_AT + field] += 1

    def prepare_slot(self, slot: int, generation: int, now_ns: int) -> None:
        """Ready a slot for a new worker (master, while no process writes to it)."""
        base = self.slot_at(slot)
        self.words[base + SlotField.ORDER] = Order.SERVE
        self.words[base + SlotField.STATE] = WorkerState.STARTING
        self.words[base + SlotField.REQUEST_NS] = 0
        self.words[base + SlotField.IN_PROGRESS] = 0
        self.words[base + SlotField.GENERATION] = generation
        self.words[base + SlotField.SPAWNED_NS] = now_ns
        self.clear_report(slot)

    def occupy_slot(self, slot: int, pid: int) -> None:
        """Publish whose slot it is now (master)."""
        base = self.slot_at(slot)
        self.words[base + SlotField.PID] = pid
        self.words[base + SlotField.SPAWNS] += 1

    def vacate_slot(self, slot: int) -> None:
        """Publish that nobody works here; the counters stay (master)."""
        self.words[self.slot_at(slot) + SlotField.PID] = 0

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
        pool = self.words[_POOL_AT : _POOL_AT + len(PoolField)].tolist()
        phase = pool[PoolField.PHASE]
        return Snapshot(
            master_pid=pool[PoolField.MASTER_PID],
            started_ns=pool[PoolField.STARTED_NS],
            phase=Phase(phase) if phase in Phase._value2member_map_ else Phase.SERVING,
            target=pool[PoolField.TARGET],
            generation=pool[PoolField.GENERATION],
            spawns=pool[PoolField.SPAWNS],
            exits=pool[PoolField.EXITS],
            fork_failures=pool[PoolField.FORK_FAILURES],
            hook_failures=pool[PoolField.HOOK_FAILURES],
            slots=tuple(self._slot_snapshot(slot) for slot in range(self.slots)),
        )

    def _slot_snapshot(self, slot: int) -> SlotSnapshot:
        base = self.slot_at(slot)
        words = self.words[base : base + _SLOT_WORDS].tolist()
        durations = tuple(words[SlotField.DURATIONS : SlotField.DURATIONS + _BUCKETS])
        errors, rejected = words[SlotField.ERRORS], words[SlotField.REJECTED]
        return SlotSnapshot(
            slot=slot,
            pid=words[SlotField.PID],
            generation=words[SlotField.GENERATION],
            spawned_ns=words[SlotField.SPAWNED_NS],
            spawns=words[SlotField.SPAWNS],
            state=self.state(slot),
            request_ns=words[SlotField.REQUEST_NS],
            in_progress=words[SlotField.IN_PROGRESS] or int(words[SlotField.REQUEST_NS] != 0),
            ok=sum(durations) - errors - rejected,
            errors=errors,
            rejected=rejected,
            accept_failures=words[SlotField.ACCEPT_FAILURES],
            truncated=words[SlotField.TRUNCATED],
            busy_ns=words[SlotField.BUSY_NS],
            durations=durations,
        )

    # --- reports: stack dumps and last words

    def open_report(self, slot: int) -> int:
        """Open the slot's report region for writing from its beginning (worker); a descriptor of its own."""
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        os.lseek(fd, self.report_at(slot), os.SEEK_SET)
        return fd

    def report_at(self, slot: int) -> int:
        """Return the byte at which a slot's report region begins."""
        return _reports_at(self.slots) + slot * REPORT_BYTES

    def clear_report(self, slot: int) -> None:
        """Empty the report region and give its pages back (master)."""
        self._map.madvise(mmap.MADV_REMOVE, self.report_at(slot), REPORT_BYTES)

    def report(self, slot: int) -> str:
        """Return the text in the report region: bytes of a worker's choosing, not yet escaped."""
        start = self.report_at(slot)
        return (
            bytes(self._bytes[start : start + REPORT_BYTES])
            .split(b"\0", 1)[0]
            .decode("utf-8", "replace")
        )


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
        words[_DURATIONS + bisect_left(DURATION_BOUNDS_NS, duration_ns)] += 1
        if outcome:
            words[outcome] += 1

    def detach(self) -> None:
        """Write into the void from now on: this process is a fork of the worker, not the worker."""
        self.words = memoryview(bytearray(_SLOT_WORDS * 8)).cast("q")


# Plain integers for the words of the hot path: an enum member costs a look-up on its class each time.
ORDER = int(SlotField.ORDER)
REQUEST_NS = int(SlotField.REQUEST_NS)
IN_PROGRESS = int(SlotField.IN_PROGRESS)
_BUSY_NS = int(SlotField.BUSY_NS)
_DURATIONS = int(SlotField.DURATIONS)


def _reports_at(slots: int) -> int:
    used = (_SLOTS_AT + slots * _SLOT_WORDS) * 8
    return -(-used // mmap.PAGESIZE) * mmap.PAGESIZE


def _size(slots: int) -> int:
    return _reports_at(slots) + slots * REPORT_BYTES
