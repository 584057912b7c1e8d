"""The shared memory: sealed, versioned, one writer per word, and nothing in it can disturb a reader."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefork.workers.scoreboard import (
    BOUNDS_NS,
    BUCKETS,
    LAYOUT,
    MAGIC,
    MOST_IN_PROGRESS,
    SLOT_WORDS,
    TEXT_BYTES,
    VERSION,
    Header,
    PoolField,
    Scoreboard,
    SlotField,
)
from prefork.workers.slot_writer import Outcome, SlotWriter
from prefork.workers.states import ExitKind, Order, Phase, StartReason, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


SLOTS = 3
WORD = st.integers(-(2**63), 2**63 - 1)
DURATION = st.integers(0, 2**40) | st.builds(
    int.__add__, st.sampled_from(BOUNDS_NS), st.integers(-1, 1)
)
"""Nanoseconds, often at the edge of a bucket."""


@contextlib.contextmanager
def scoreboard(slots: int = SLOTS) -> Iterator[Scoreboard]:
    """Make a scoreboard and give it back."""
    board = Scoreboard.create(slots)
    try:
        yield board
    finally:
        board.close()


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """Give a scoreboard of three slots."""
    with scoreboard() as made:
        yield made


@contextlib.contextmanager
def pen(board: Scoreboard, slot: int) -> Iterator[SlotWriter]:
    """Give a worker's pen; its view must go before the map is closed."""
    writer = SlotWriter(board, slot)
    view = writer.words
    try:
        yield writer
    finally:
        view.release()


@contextlib.contextmanager
def reader(board: Scoreboard) -> Iterator[Scoreboard]:
    """Attach as another process would: through /proc, for reading."""
    attached = Scoreboard.attach(os.open(f"/proc/self/fd/{board.fd}", os.O_RDONLY | os.O_CLOEXEC))
    try:
        yield attached
    finally:
        attached.close()


def bytes_of(board: Scoreboard) -> bytes:
    """Copy the whole file."""
    return os.pread(board.fd, os.fstat(board.fd).st_size, 0)


# --- the file


@pytest.mark.parametrize("change", [-1, 1, -(10**6)])
def test_size_is_sealed(board: Scoreboard, change: int) -> None:
    """Nobody can shrink the file under its readers (SIGBUS) or let it grow, or take the seals away."""
    size = os.fstat(board.fd).st_size
    with pytest.raises(PermissionError):
        os.ftruncate(board.fd, max(0, size + change))
    with pytest.raises(PermissionError):
        fcntl.fcntl(board.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)

    assert size == os.fstat(board.fd).st_size


def test_file_can_be_found_and_is_not_inherited(board: Scoreboard) -> None:
    """The memfd bears a name that /proc shows, and programs that handlers start do not get it."""
    assert os.readlink(f"/proc/self/fd/{board.fd}").startswith("/memfd:prefork-scoreboard")
    assert not os.get_inheritable(board.fd)


@given(st.integers(1, 200))
def test_regions_do_not_overlap(slots: int) -> None:
    """The pool's words, the page-aligned texts of the master and the slots fill the file without touching each other."""
    with scoreboard(slots) as board:
        first, second = board.description.start, board.reload_report.start
        pools_end = (max(Header) + 1 + len(board.snapshot().words)) * 8

        assert pools_end <= first
        assert (first % mmap.PAGESIZE, second % mmap.PAGESIZE) == (0, 0)
        assert second - first == TEXT_BYTES
        assert second + TEXT_BYTES == board.slot_at(0) * 8
        assert board.slot_at(slots) * 8 == os.fstat(board.fd).st_size


def test_words_do_not_overlap(board: Scoreboard) -> None:
    """Every word, every bucket and every counter of a kind has a place of its own, within its record."""
    rows = dict.fromkeys(SlotField, 1)
    rows |= {SlotField.DURATIONS: BUCKETS, SlotField.QUEUE_WAITS: BUCKETS}
    columns = dict.fromkeys(PoolField, 1) | {PoolField.BOOTS: BUCKETS}
    columns |= {PoolField.STARTS: len(StartReason), PoolField.EXITS: len(ExitKind)}
    for fields, size in (
        (rows, board.slot_at(1) - board.slot_at(0)),
        (columns, len(board.snapshot().words)),
    ):
        taken = [field + n for field, length in fields.items() for n in range(length)]
        assert len(taken) == len(set(taken))
        assert max(taken) < size
    assert max(Header) < 8, "where the pool's words begin"


@pytest.mark.parametrize("word", [2**63 - 1, -(2**63), -1])
def test_no_word_whatever_makes_the_master_fail(board: Scoreboard, word: int) -> None:
    """What a worker has scribbled everywhere spoils numbers: none of the master's steps raises."""
    for index in range(board.slot_at(SLOTS)):
        board.words[index] = word
    for _ in range(2):
        board.prepare_slot(0, 1, 5)
        board.occupy_slot(0, 7, StartReason.STARTED)
        board.words[board.slot_at(0) + SlotField.REQUEST_NS] = word
        board.words[board.slot_at(0) + SlotField.IN_PROGRESS] = word
        board.words[board.slot_at(0) + SlotField.SPAWNED_NS] = word
        board.note_ready(0, 9, 4)
        for field in SlotField:
            board.count_slot(0, field, 3)
        board.vacate_slot(0, ExitKind.KILLED, 11)
    for field in PoolField:
        board.count_pool(field, 2)
    assert board.state(0) is WorkerState.GONE


# --- attaching


def test_header_says_what_it_is(board: Scoreboard) -> None:
    """A reader of another language finds magic, version and the measures of all regions in the first words."""
    words = board.words

    assert tuple(words[at] for at in (Header.MAGIC, Header.VERSION, Header.SLOTS)) == (
        MAGIC,
        VERSION,
        SLOTS,
    )
    assert bytes_of(board)[:8] == b"prefork\0"
    assert words[Header.SLOTS_AT] == board.slot_at(0)
    assert words[Header.SLOT_WORDS] == board.slot_at(1) - board.slot_at(0)
    assert words[Header.TEXTS_AT] == board.description.start
    assert words[Header.TEXT_BYTES] == TEXT_BYTES


def test_reader_sees_what_was_written(board: Scoreboard) -> None:
    """What attaches to the same memfd reads the same numbers, also those that are written later."""
    with reader(board) as attached, pen(board, 1) as writer:
        board.set_pool(PoolField.TARGET, 7)
        board.occupy_slot(1, 4711, StartReason.STARTED)
        writer.become(WorkerState.IDLE)

        seen = attached.snapshot()
        assert seen[PoolField.TARGET] == 7
        assert (seen.slots[1][SlotField.PID], seen.slots[1].state) == (4711, WorkerState.IDLE)
        assert seen == board.snapshot()


def test_reader_cannot_write(board: Scoreboard) -> None:
    """Attached for reading, every way to write fails, and not a byte changes."""
    before = bytes_of(board)
    with reader(board) as attached, pen(attached, 0) as writer:
        attempts: list[Callable[[], object]] = [
            lambda: attached.set_pool(PoolField.TARGET, 1),
            lambda: attached.prepare_slot(0, 1, 1),
            lambda: attached.give_order(0, Order.RETIRE),
            lambda: writer.become(WorkerState.BUSY),
            lambda: attached.description.write("x"),
            lambda: attached.vacate_slot(0, ExitKind.KILLED, 1),
            lambda: os.pwrite(attached.fd, b"x", 0),
        ]
        for attempt in attempts:
            with pytest.raises((TypeError, OSError)):
                attempt()

    assert before == bytes_of(board)


@pytest.mark.parametrize(
    "field",
    [
        Header.MAGIC,
        Header.VERSION,
        Header.SLOTS,
        Header.SLOT_WORDS,
        Header.SLOTS_AT,
        Header.TEXT_BYTES,
    ],
)
@given(word=WORD)
@example(word=0)
@example(word=-1)
@example(word=2**62)
def test_other_layouts_are_refused(field: Header, word: int) -> None:
    """A header of another version or layout is refused with ValueError before anything is mapped."""
    with scoreboard() as board:
        if word == board.words[field]:
            return
        board.words[field] = word
        with pytest.raises(ValueError, match="scoreboard"):
            Scoreboard.attach(board.fd)


@pytest.mark.parametrize("size", [0, 8, 56, 64, 4096])
def test_other_files_are_refused(tmp_path: Path, size: int) -> None:
    """What is no scoreboard at all is refused with ValueError."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * size)
    with file.open("rb") as opened, pytest.raises(ValueError, match="not a scoreboard"):
        Scoreboard.attach(opened.fileno())


@pytest.mark.parametrize("size", [1, 5, 63])
def test_short_files_are_refused(tmp_path: Path, size: int) -> None:
    """A file that ends within a word is refused with ValueError like any other."""
    test_other_files_are_refused(tmp_path, size)


@pytest.mark.parametrize("scribbled", [0, 255])
def test_next_image_maps_without_reading(board: Scoreboard, scribbled: int) -> None:
    """Whatever stands in the memory, the next image has the slots that were handed over, and readers find them."""
    board.words.cast("B")[:] = bytes([scribbled]) * len(board.words.cast("B"))
    adopted = Scoreboard.adopt(os.dup(board.fd), board.slots, LAYOUT)
    adopted.set_pool(PoolField.TARGET, 7)
    found = Scoreboard.attach(os.dup(board.fd))

    assert (adopted.slots, found.slots) == (board.slots, board.slots)
    assert found.pool(PoolField.TARGET) == 7
    found.close()
    adopted.close()


@pytest.mark.parametrize("change", [-1, 1])
def test_next_image_refuses_another_size(board: Scoreboard, change: int) -> None:
    """A number of slots that the sealed memory does not have is refused before anything is mapped."""
    with pytest.raises(ValueError, match="slots take"):
        Scoreboard.adopt(board.fd, board.slots + change, LAYOUT)


def test_next_image_refuses_another_layout(board: Scoreboard) -> None:
    """A memory of another layout is refused, and its header stays as it is."""
    board.words[Header.VERSION] = VERSION + 1
    with pytest.raises(ValueError, match="another layout"):
        Scoreboard.adopt(board.fd, board.slots, (VERSION + 1, *LAYOUT[1:]))
    assert board.words[Header.VERSION] == VERSION + 1


# --- counters and slots


def test_counters_survive_the_worker(board: Scoreboard) -> None:
    """Replacing a slot's worker changes no counter: they belong to the slot and never decrease."""
    with pen(board, 1) as writer:
        board.prepare_slot(1, 0, 11)
        board.occupy_slot(1, 100, StartReason.STARTED)
        for duration in (1, BOUNDS_NS[3], 10**12):
            writer.account(Outcome.OK, duration)
        writer.account(Outcome.ERROR, 5)
        writer.account(Outcome.REJECTED, 5)
        writer.count(SlotField.ACCEPT_FAILURES)
        writer.count(SlotField.TRUNCATED)
        writer.words[SlotField.QUEUE_WAIT_NS] = 70
        writer.words[SlotField.QUEUE_WAITS + 2] = 1
    for field in (SlotField.CPU_USER_NS, SlotField.SLOW, SlotField.VOLUNTARY_SWITCHES):
        board.count_slot(1, field, 9)
    before = board.snapshot().slots[1]
    board.vacate_slot(1, ExitKind.KILLED, 20)
    board.prepare_slot(1, 3, 22)
    between = board.snapshot().slots[1]
    board.occupy_slot(1, 200, StartReason.RESPAWNED)
    after = board.snapshot().slots[1]
    masters = {SlotField.PID, SlotField.GENERATION, SlotField.SPAWNED_NS, SlotField.SPAWNS}
    changed = {*masters, SlotField.LAST_EXIT, SlotField.LAST_EXIT_NS}

    assert after.ok == 3
    assert after[SlotField.BUSY_NS] == 1 + BOUNDS_NS[3] + 10**12 + 10
    assert {field for field in SlotField if before[field] != after[field]} == changed
    for histogram in (SlotField.DURATIONS, SlotField.QUEUE_WAITS):
        assert before.histogram(histogram) == after.histogram(histogram)
        assert sum(after.histogram(histogram)) > 0
    assert [one[SlotField.SPAWNS] for one in (before, between, after)] == [1, 1, 2]
    places = (SlotField.GENERATION, SlotField.SPAWNED_NS, SlotField.PID)
    assert [before[field] for field in places] == [0, 11, 100]
    assert [after[field] for field in places] == [3, 22, 200]


def test_new_worker_begins_afresh(board: Scoreboard) -> None:
    """Order, request in hand, state, wish and readiness of the predecessor are gone before the next worker lives."""
    with pen(board, 0) as writer:
        writer.become(WorkerState.IDLE)
        writer.words[SlotField.REQUEST_NS] = 5
        writer.words[SlotField.IN_PROGRESS] = 2
        writer.words[SlotField.RECYCLE_REQUEST] = 1
    board.note_ready(0, 3, 2)
    board.give_order(0, Order.DRAIN)
    board.prepare_slot(0, 1, 9)
    board.occupy_slot(0, 4711, StartReason.RECYCLED)
    slot = board.snapshot().slots[0]

    assert (slot.state, slot.in_progress) == (WorkerState.STARTING, 0)
    for field in (SlotField.REQUEST_NS, SlotField.RECYCLE_REQUEST, SlotField.READY_NS):
        assert slot[field] == 0
    assert slot[SlotField.ORDER] == Order.SERVE


@pytest.mark.parametrize("kind", ExitKind)
@pytest.mark.parametrize(
    ("since", "in_progress", "lost"),
    [
        (0, 0, 0),
        (0, 7, 0),  # a worker with threads writes its number a moment before the since-when
        (5, 0, 1),
        (5, 3, 3),
        (5, -4, 1),
        (-5, 1, 1),
        (5, 2**62, MOST_IN_PROGRESS),
    ],
)
def test_requests_that_end_with_their_worker_are_counted(
    board: Scoreboard, kind: ExitKind, since: int, in_progress: int, lost: int
) -> None:
    """What a worker had in hand when it ended is counted once, as timeout or as aborted, within bounds."""
    board.occupy_slot(1, 4711, StartReason.STARTED)
    with pen(board, 1) as writer:
        writer.words[SlotField.REQUEST_NS] = since
        writer.words[SlotField.IN_PROGRESS] = in_progress
    board.vacate_slot(1, kind, 30)
    slot = board.snapshot().slots[1]
    timed_out = kind is ExitKind.REQUEST_TIMEOUT

    assert slot[SlotField.TIMEOUTS] == (lost if timed_out else 0)
    assert slot[SlotField.ABORTED] == (0 if timed_out else lost)
    assert (slot.state, slot.in_progress, slot[SlotField.REQUEST_NS]) == (WorkerState.GONE, 0, 0)
    assert slot.ok == 0
    board.vacate_slot(1, kind, 31)
    again = board.snapshot().slots[1]
    assert again[SlotField.TIMEOUTS] + again[SlotField.ABORTED] == lost


@pytest.mark.parametrize("kind", ExitKind)
def test_exits_are_counted_by_kind(board: Scoreboard, kind: ExitKind) -> None:
    """Each end of a worker is counted under its kind alone, and its slot says of what and when the last one ended."""
    never = board.snapshot().slots[0].last_exit
    for instant in (40, 50):
        board.vacate_slot(0, kind, instant)
    seen = board.snapshot()

    assert never is None
    assert {other: count for other, count in seen.exits.items() if count} == {kind: 2}
    assert (seen.slots[0].last_exit, seen.slots[0][SlotField.LAST_EXIT_NS]) == (kind, 50)
    assert seen.slots[1].last_exit is None
    assert [*seen.exits] == [*ExitKind]


@pytest.mark.parametrize(
    ("kind", "status", "word"),
    [
        (ExitKind.EXITED, 0, "exited(0)"),
        (ExitKind.EXITED, 255, "exited(255)"),
        (ExitKind.EXITED, None, "exited(unknown)"),
        (ExitKind.KILLED, 11, "killed(SIGSEGV)"),
        (ExitKind.KILLED, 255, "killed(signal 255)"),
        (ExitKind.RETIRED, 0, "retired"),
    ],
)
def test_slot_keeps_the_status_of_its_last_worker(
    board: Scoreboard, kind: ExitKind, status: int | None, word: str
) -> None:
    """A slot says with which status or by which signal its last worker ended, as the log does."""
    board.vacate_slot(0, kind, 40, status)
    slot = board.snapshot().slots[0]
    assert str(slot.last_cause) == word
    assert slot.last_exit is kind


@pytest.mark.parametrize("word", [-(2**63), -1, 0, len(ExitKind) + 1, 2**63 - 1])
def test_unknown_last_exit_is_none(board: Scoreboard, word: int) -> None:
    """A number that is no kind of exit is shown as none."""
    board.words[board.slot_at(0) + SlotField.LAST_EXIT] = word

    assert board.snapshot().slots[0].last_exit is None
    assert board.snapshot().slots[0].last_cause is None


@pytest.mark.parametrize("reason", StartReason)
def test_starts_are_counted_by_reason(board: Scoreboard, reason: StartReason) -> None:
    """Each fork is counted under its reason alone, and as one more worker of its slot."""
    board.occupy_slot(2, 100, reason)
    board.occupy_slot(2, 101, reason)
    seen = board.snapshot()

    assert {other: count for other, count in seen.starts.items() if count} == {reason: 2}
    assert [one[SlotField.SPAWNS] for one in seen.slots] == [0, 0, 2]
    assert [*seen.starts] == [*StartReason]


@given(st.lists(DURATION, max_size=20))
def test_boots_are_measured(durations: list[int]) -> None:
    """Each worker that becomes ready is in one bucket of the times from fork to ready, and in their sum."""
    with scoreboard(1) as board:
        for duration in durations:
            board.prepare_slot(0, 0, 1000)
            board.note_ready(0, 1000 + duration, duration)
        seen = board.snapshot()
        edges = [-1, *BOUNDS_NS, 2**63]

        assert seen[PoolField.BOOT_NS] == sum(durations)
        assert seen.boots == tuple(
            sum(low < duration <= high for duration in durations)
            for low, high in itertools.pairwise(edges)
        )
        assert seen.slots[0][SlotField.READY_NS] == (1000 + durations[-1] if durations else 0)


def test_bounds_are_those_of_the_metrics() -> None:
    """Buckets end at whole parts of a millisecond, each higher than the one before, and fit between two fields."""
    assert [*BOUNDS_NS] == sorted(set(BOUNDS_NS))
    assert [bound % 500_000 for bound in BOUNDS_NS] == [0] * len(BOUNDS_NS)
    assert (BOUNDS_NS[0], BOUNDS_NS[-1]) == (10**6, 10**10)
    assert len(BOUNDS_NS) + 1 == BUCKETS


def test_workers_are_counted_by_state(board: Scoreboard) -> None:
    """count() says how many slots are in any of the states asked for."""
    board.occupy_slot(0, 1, StartReason.STARTED)
    board.occupy_slot(1, 2, StartReason.STARTED)
    board.words[board.slot_at(1) + SlotField.STATE] = WorkerState.IDLE
    board.words[board.slot_at(0) + SlotField.STATE] = WorkerState.STARTING
    seen = board.snapshot()

    assert seen.count(WorkerState.IDLE) == 1
    assert seen.count(WorkerState.IDLE, WorkerState.GONE) == 2
    assert seen.count(WorkerState.BUSY) == 0
    assert seen.count(*WorkerState) == SLOTS


@pytest.mark.parametrize(("since", "many", "in_hand"), [(0, 0, 0), (9, 0, 1), (9, 4, 4), (0, 4, 4)])
def test_requests_in_hand(board: Scoreboard, since: int, many: int, in_hand: int) -> None:
    """A worker with threads says how many requests it has in hand; of the others the since-when tells."""
    board.words[board.slot_at(1) + SlotField.REQUEST_NS] = since
    board.words[board.slot_at(1) + SlotField.IN_PROGRESS] = many

    assert board.snapshot().slots[1].in_progress == in_hand


@pytest.mark.parametrize(
    ("state", "pid", "order", "worker_says"),
    [
        (WorkerState.GONE, 0, Order.SERVE, (WorkerState.IDLE, 0)),
        (WorkerState.GONE, 0, Order.RETIRE, (WorkerState.BUSY, 7)),
        (WorkerState.STARTING, 1, Order.SERVE, (WorkerState.STARTING, 0)),
        (WorkerState.IDLE, 1, Order.SERVE, (WorkerState.IDLE, 0)),
        (WorkerState.BUSY, 1, Order.SERVE, (WorkerState.IDLE, 7)),
        (WorkerState.BUSY, 1, Order.SERVE, (WorkerState.BUSY, 0)),
        (WorkerState.RETIRING, 1, Order.RETIRE, (WorkerState.IDLE, 7)),
        (WorkerState.RETIRING, 1, Order.DRAIN, (WorkerState.STARTING, 0)),
        (WorkerState.BUSY, 1, Order.SERVE, (99, 0)),
        (WorkerState.BUSY, 1, Order.SERVE, (-1, 0)),
    ],
)
def test_state_of_a_slot(
    board: Scoreboard, state: WorkerState, pid: int, order: Order, worker_says: tuple[int, int]
) -> None:
    """Gone and retiring are the master's words and win; an idle worker with a request in hand is busy; nonsense is busy."""
    base, (written, request_ns) = board.slot_at(2), worker_says
    board.words[base + SlotField.PID] = pid
    board.words[base + SlotField.ORDER] = order
    board.words[base + SlotField.STATE] = written
    board.words[base + SlotField.REQUEST_NS] = request_ns

    assert state is board.state(2)
    assert state is board.snapshot().slots[2].state


@given(st.lists(st.tuples(st.sampled_from(Outcome), DURATION), max_size=30))
def test_accounts_add_up(requests: list[tuple[Outcome, int]]) -> None:
    """Every request is in one bucket, whose bound is the first not below it, and under one outcome."""
    with scoreboard(1) as board:
        with pen(board, 0) as writer:
            for outcome, duration in requests:
                writer.words[SlotField.REQUEST_NS] = 1
                writer.account(outcome, duration)
        slot = board.snapshot().slots[0]
        edges = [-1, *BOUNDS_NS, 2**63]
        outcomes = [outcome for outcome, _ in requests]

        assert slot.histogram(SlotField.DURATIONS) == tuple(
            sum(low < duration <= high for _, duration in requests)
            for low, high in itertools.pairwise(edges)
        )
        assert slot[SlotField.BUSY_NS] == sum(duration for _, duration in requests)
        assert [slot.ok, slot[SlotField.ERRORS], slot[SlotField.REJECTED]] == [
            outcomes.count(kind) for kind in (Outcome.OK, Outcome.ERROR, Outcome.REJECTED)
        ]
        assert slot[SlotField.REQUEST_NS] == 0


def test_totals_are_sums_over_all_slots(board: Scoreboard) -> None:
    """A total is what all slots have counted of one kind, and nothing else."""
    for slot, times in enumerate((1, 2, 4)):
        with pen(board, slot) as writer:
            for _ in range(times):
                writer.count(SlotField.TRUNCATED)
            writer.count(SlotField.ERRORS)

    assert board.total(SlotField.TRUNCATED) == 7
    assert board.total(SlotField.ERRORS) == 3


def test_pool_words_are_in_no_slot(board: Scoreboard) -> None:
    """Each pool word is shown under its name, counts by what it is told, and touches no slot."""
    for number, word in enumerate(PoolField, start=100):
        board.set_pool(word, number)
    board.set_pool(PoolField.PHASE, Phase.DRAINING)
    board.count_pool(PoolField.RELOADS)
    board.count_pool(PoolField.HOOK_FAILURES, 5)
    seen = board.snapshot()
    expected = dict(zip(PoolField, range(100, 200), strict=False))
    expected |= {PoolField.PHASE: Phase.DRAINING}
    expected[PoolField.RELOADS] += 1
    expected[PoolField.HOOK_FAILURES] += 5

    assert {word: seen[word] for word in PoolField} == expected
    assert {word: board.pool(word) for word in PoolField} == expected
    assert seen.phase is Phase.DRAINING
    with scoreboard() as untouched:
        assert untouched.snapshot().slots == seen.slots


def test_watch_word_is_the_pool_s(board: Scoreboard) -> None:
    """The view that workers look at shows WATCH and nothing else."""
    view = board.pool_word(PoolField.WATCH)
    board.set_pool(PoolField.WATCH, 1)

    assert view.tolist() == [1]
    view.release()


def test_pen_reaches_its_own_slot_only(board: Scoreboard) -> None:
    """A worker's pen ends where its slot ends: an index too high is an error, not the neighbour's word."""
    with pen(board, 1) as writer:
        for at in range(len(writer.words)):
            writer.words[at] = -7
        with pytest.raises(IndexError):
            writer.words[len(writer.words)] = -7
    slots = board.snapshot().slots
    with scoreboard() as untouched:
        assert untouched.snapshot().slots[::2] == slots[::2]


def test_detached_pen_writes_nowhere(board: Scoreboard) -> None:
    """After detach() nothing that a fork of the worker does reaches the slot, and nothing raises."""
    with pen(board, 1) as writer:
        before = bytes_of(board)
        writer.detach()
        writer.become(WorkerState.BUSY)
        writer.words[SlotField.REQUEST_NS] = 1
        writer.account(Outcome.ERROR, 10)
        writer.count(SlotField.TRUNCATED)

        assert before == bytes_of(board)
        assert writer.words[SlotField.ORDER] == Order.SERVE


def test_orders_reach_the_pen(board: Scoreboard) -> None:
    """What the master asks of one slot is read there, and not by its neighbour."""
    with pen(board, 1) as writer, pen(board, 2) as neighbour:
        board.give_order(1, Order.DRAIN)

        words = [one.words[SlotField.ORDER] for one in (writer, neighbour)]
        assert words == [Order.DRAIN, Order.SERVE]


# --- what was scribbled


@pytest.mark.parametrize("full", [2**63 - 1, -(2**63), -1])
@pytest.mark.parametrize("duration", [5, 10**12])
@pytest.mark.parametrize("outcome", Outcome)
def test_full_counters_cost_no_request(
    board: Scoreboard, full: int, duration: int, outcome: Outcome
) -> None:
    """Whatever was scribbled into the counters of a slot, a request is accounted for without an error."""
    with pen(board, 1) as writer:
        counters = range(SlotField.ERRORS, SLOT_WORDS)
        for field in counters:
            writer.words[field] = full
        writer.words[SlotField.REQUEST_NS] = 7
        for _ in range(3):
            writer.account(outcome, duration)
            writer.account_short(16, duration)
            writer.count(SlotField.TRUNCATED)

        assert writer.words[SlotField.REQUEST_NS] == 0
        if full > 0:
            assert {writer.words[field] for field in counters} == {full}
        else:
            assert writer.words[SlotField.BUSY_NS] > full


def test_one_full_counter_leaves_the_others_right(board: Scoreboard) -> None:
    """Where the sum of the durations is full, the requests are counted as ever."""
    with pen(board, 1) as writer:
        writer.words[SlotField.BUSY_NS] = 2**63 - 1
        writer.account(Outcome.ERROR, 10**12)
        writer.account_short(3, 10)

        assert writer.words[SlotField.BUSY_NS] == 2**63 - 1
        assert writer.words[SlotField.ERRORS] == 1
        assert sum(writer.words[SlotField.DURATIONS : SlotField.DURATIONS + BUCKETS]) == 4


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_scribbling_disturbs_no_reader(seed: int, slots: int) -> None:
    """Random bytes over the whole map, header included, raise in no reader: states and phases stay in their tables."""
    with scoreboard(slots) as board:
        os.pwrite(board.fd, random.Random(seed).randbytes(os.fstat(board.fd).st_size), 0)
        seen = board.snapshot()

        assert len(seen.slots) == slots
        assert isinstance(seen.phase, Phase)
        assert {type(slot.state) for slot in seen.slots} == {WorkerState}
        assert {type(slot.last_exit) for slot in seen.slots} <= {ExitKind, type(None)}
        assert ([*seen.exits], [*seen.starts]) == ([*ExitKind], [*StartReason])
        for slot in range(slots):
            assert board.word(slot, SlotField.PID) == seen.slots[slot][SlotField.PID]
            board.total(SlotField.ERRORS)
        board.description.read().encode()
        board.reload_report.read().encode()


@given(st.dictionaries(st.sampled_from(SlotField), WORD))
def test_any_word_is_shown(words: dict[SlotField, int]) -> None:
    """Any numbers in a slot are shown as they are, also the least and the greatest."""
    with scoreboard(1) as board:
        for at, word in words.items():
            board.words[board.slot_at(0) + at] = word
        slot = board.snapshot().slots[0]

        assert {field: slot[field] for field in words} == words
        assert slot.state in WorkerState
        assert slot.last_exit is None or slot.last_exit in ExitKind


# --- the master's texts


def test_master_s_texts_are_apart(board: Scoreboard) -> None:
    """What the pool is and how the last reload failed are two texts, each replaced whole."""
    assert (board.description.read(), board.reload_report.read()) == ("", "")
    board.description.write('{"name": "one two three"}')
    board.reload_report.write("SyntaxError: é")
    board.description.write('{"name": "\u2026"}')
    with reader(board) as attached:
        assert attached.description.read() == '{"name": "\u2026"}'
        assert attached.reload_report.read() == "SyntaxError: é"
    board.reload_report.write("")

    assert (board.description.read(), board.reload_report.read()) == ('{"name": "\u2026"}', "")


@pytest.mark.parametrize("text", ["é" * TEXT_BYTES, "a" * (TEXT_BYTES + 9), "a\udc80b"])
def test_master_s_texts_are_bounded(board: Scoreboard, text: str) -> None:
    """A text that is too long is cut within its region, and one that cannot be encoded is escaped."""
    board.description.write(text)
    board.reload_report.write(text)

    assert (
        0 < len(board.description.read().encode()) <= TEXT_BYTES + 2
    )  # a character cut in half is replaced
    assert board.description.read() == board.reload_report.read()


# --- other processes


@pytest.mark.processes
def test_words_are_shared_with_children(board: Scoreboard) -> None:
    """What a forked worker writes is read by the master, and outlives the worker."""
    child = os.fork()
    if child == 0:
        try:
            writer = SlotWriter(board, 2)
            writer.become(WorkerState.IDLE)
            writer.account(Outcome.OK, 1)
        finally:
            os._exit(0)
    board.occupy_slot(2, child, StartReason.STARTED)
    os.waitpid(child, 0)

    assert (board.state(2), board.snapshot().slots[2].ok) == (WorkerState.IDLE, 1)


@pytest.mark.processes
def test_reader_of_another_process(board: Scoreboard) -> None:
    """Another program of the same user attaches through /proc/PID/fd and reads, without being able to write."""
    board.set_pool(PoolField.TARGET, 42)
    program = """
import os, sys
from prefork.workers.scoreboard import PoolField, Scoreboard
board = Scoreboard.attach(os.open(sys.argv[1], os.O_RDONLY))
print(board.snapshot()[PoolField.TARGET])
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, f"/proc/{os.getpid()}/fd/{board.fd}"]

    assert subprocess.run(
        command, env=env, check=True, capture_output=True, text=True, timeout=30
    ).stdout == ("42\n")


def test_create_leaves_nothing_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scoreboard that cannot be mapped leaves no descriptor behind (the fixture of all tests looks)."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(OSError, match="Cannot allocate"):
        Scoreboard.create(1)
