"""The status of a pool: what the words say, and a value whatever the words say."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.master.saturation import publish_saturation
from prefork.metrics.description import ListenerDescription, PoolDescription
from prefork.metrics.kernel import Queue
from prefork.metrics.status import is_ready, last_tick, status
from prefork.workers.cancel import CancelReason
from prefork.workers.scoreboard import (
    BOUNDS_NS,
    BUCKETS,
    MOST_IN_PROGRESS,
    PoolField,
    Scoreboard,
    SlotField,
)
from prefork.workers.slot_writer import Outcome, SlotWriter
from prefork.workers.states import (
    ExitKind,
    Order,
    Phase,
    ReloadState,
    SaturationCause,
    StartReason,
    WorkerState,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


SLOTS = 5
SECOND = 1_000_000_000
NOW = 1000 * SECOND
WORD = st.integers(-(2**63), 2**63 - 1)
NOTHING_SAID = PoolDescription()
TOTALS = ("ok", "error", "rejected", "client_timeout", "timeout", "aborted")


@contextlib.contextmanager
def scoreboard() -> Iterator[Scoreboard]:
    """Make a scoreboard and give it back."""
    board = Scoreboard.create(SLOTS)
    try:
        yield board
    finally:
        board.close()


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """Give a scoreboard in which nothing has happened yet."""
    with scoreboard() as board:
        yield board


def worker(board: Scoreboard, slot: int, state: WorkerState, *, since: int = NOW) -> SlotWriter:
    """Let a slot have a worker in a state, as master and worker write it."""
    board.prepare_slot(slot, 0, since)
    board.occupy_slot(slot, 100 + slot, StartReason.STARTED)
    writer = SlotWriter(board, slot)
    writer.become(WorkerState.IDLE if state is WorkerState.BUSY else state)
    if state is WorkerState.BUSY:
        board.words[board.slot_at(slot) + SlotField.REQUEST_NS] = since
    if state is WorkerState.RETIRING:
        board.give_order(slot, Order.RETIRE)
    return writer


def seen(
    board: Scoreboard, description: PoolDescription = NOTHING_SAID, **more: Any
) -> dict[str, Any]:
    """Return the status as its readers get it."""
    found: dict[str, Any] = json.loads(
        json.dumps(status(board.snapshot(), description, NOW, **more), allow_nan=False)
    )
    return found


# --- what the words say


def test_states_are_counted_and_drawn(board: Scoreboard) -> None:
    """Each state has its letter, its count and its slot; utilisation is the busy part of the ready workers."""
    for slot, state in enumerate(
        (WorkerState.STARTING, WorkerState.IDLE, WorkerState.BUSY, WorkerState.RETIRING)
    ):
        worker(board, slot, state)
    for field, value in ((PoolField.FLOOR, 2), (PoolField.TARGET, 4), (PoolField.NEEDED, 1)):
        board.set_pool(field, value)

    found = seen(board)

    assert found["scoreboard"] == "S_BR."
    assert found["usable_cpus"] is None
    assert found["workers"] == {
        "floor": 2,
        "target": 4,
        "max": SLOTS,
        "needed": 1,
        "starting": 1,
        "idle": 1,
        "busy": 1,
        "retiring": 1,
        "ready": 2,
    }
    assert found["utilization"] == 0.5
    assert [one["state"] for one in found["slots"]] == [
        *("starting", "idle", "busy", "retiring", "gone")
    ]


def test_requests_are_counted_by_outcome(board: Scoreboard) -> None:
    """Outcomes of all slots add up to the total, and a slot's own to its requests."""
    first, second = (worker(board, slot, WorkerState.IDLE) for slot in (0, 1))
    first.account(Outcome.OK, SECOND)
    first.account(Outcome.ERROR, SECOND)
    second.account(Outcome.OK, SECOND)
    second.account(Outcome.REJECTED, 0)
    second.account(Outcome.CLIENT_TIMEOUT, SECOND)
    for reason in CancelReason:
        second.account(Outcome.cancelled(reason), 0)
    worker(board, 2, WorkerState.BUSY)
    board.vacate_slot(2, ExitKind.REQUEST_TIMEOUT, NOW)
    worker(board, 3, WorkerState.BUSY)
    board.vacate_slot(3, ExitKind.KILLED, NOW)
    worker(board, 4, WorkerState.BUSY)

    found = seen(board)

    assert found["cancellations"] == {reason.value: 1 for reason in CancelReason}
    assert found["requests"] == {
        "ok": 2,
        "error": 1,
        "rejected": 1,
        "client_timeout": 1,
        "cancelled": len(CancelReason),
        "timeout": 1,
        "aborted": 1,
        "total": 7 + len(CancelReason),
        "in_progress": 1,
    }
    assert [one["requests"] for one in found["slots"]] == [2, 3 + len(CancelReason), 1, 1, 0]
    assert found["slots"][0]["busy"] == 2.0
    assert (found["exits"]["request_timeout"], found["exits"]["killed"]) == (1, 1)
    assert found["slots"][3]["last_exit"] == "killed"
    assert found["starts"]["started"] == 5


def test_histograms_are_in_seconds_and_not_cumulative(board: Scoreboard) -> None:
    """A request is counted in its own bucket alone; bounds and sum are seconds."""
    writer = worker(board, 0, WorkerState.IDLE)
    writer.account(Outcome.OK, BOUNDS_NS[0])
    writer.account(Outcome.OK, 11 * SECOND)
    worker(board, 1, WorkerState.IDLE).account(Outcome.OK, BOUNDS_NS[0])

    durations = seen(board)["durations"]

    assert durations["bounds"] == [bound / SECOND for bound in BOUNDS_NS]
    assert durations["counts"] == [2, *[0] * (BUCKETS - 2), 1]
    assert durations["sum"] == pytest.approx(11.002)


def test_times_are_seconds_ago(board: Scoreboard) -> None:
    """Uptime, the master's last tick, the age of a worker and of its request are seconds before now."""
    board.set_pool(PoolField.STARTED_NS, NOW - 60 * SECOND)
    board.set_pool(PoolField.TICK_NS, NOW - SECOND // 4)
    worker(board, 0, WorkerState.IDLE, since=NOW - 3 * SECOND)
    board.words[board.slot_at(0) + SlotField.REQUEST_NS] = NOW - 2 * SECOND

    found = seen(board)

    assert (found["uptime"], found["last_tick"]) == (60.0, 0.25)
    assert (found["slots"][0]["age"], found["slots"][0]["request_age"]) == (3.0, 2.0)
    assert (found["slots"][1]["age"], found["slots"][1]["request_age"]) == (None, None)


def test_master_that_has_not_ticked_yet_is_no_hung_one(board: Scoreboard) -> None:
    """Before the first tick the start counts, and before the start nothing does."""
    assert last_tick(board.snapshot(), NOW) == 0.0

    board.set_pool(PoolField.STARTED_NS, NOW - 2 * SECOND)
    assert last_tick(board.snapshot(), NOW) == 2.0


@pytest.mark.parametrize(
    ("phase", "needed", "expected"),
    [
        (Phase.SERVING, 2, True),
        (Phase.SERVING, 3, False),
        (Phase.SERVING, 0, False),
        (Phase.NOT_READY, 2, False),
        (Phase.DRAINING, 1, False),
    ],
)
def test_ready_means_enough_ready_workers_in_a_pool_that_serves(
    board: Scoreboard, phase: Phase, needed: int, expected: bool
) -> None:
    """Idle and busy workers count, those that start or leave do not; a pool that stops is not ready."""
    for slot, state in enumerate((WorkerState.IDLE, WorkerState.BUSY, WorkerState.STARTING)):
        worker(board, slot, state)
    worker(board, 3, WorkerState.RETIRING)
    board.set_pool(PoolField.PHASE, phase)
    board.set_pool(PoolField.NEEDED, needed)

    assert is_ready(board.snapshot()) is expected
    assert seen(board)["ready"] is expected


def test_reload_is_named(board: Scoreboard) -> None:
    """How far a reload has come is said in the words of ReloadState."""
    assert seen(board)["reload_state"] == "none"

    board.set_pool(PoolField.RELOAD_STATE, ReloadState.FAILED)
    assert seen(board)["reload_state"] == "failed"


def test_listeners_have_the_queues_of_their_inodes(board: Scoreboard) -> None:
    """A listener shows the queue that the kernel has for its inode, and nulls where there is none."""
    listed = ListenerDescription("tcp://a", "stream", inode=7), ListenerDescription("b", inode=8)
    queue = Queue(depth=3, limit=128)

    found = seen(board, PoolDescription(listeners=listed), queues={7: queue})["listeners"]

    nothing = dict.fromkeys(("depth", "limit", "bytes", "drops"))
    assert found == [
        {"name": "tcp://a", "kind": "stream", **nothing, "depth": 3, "limit": 128},
        {"name": "b", "kind": "other", **nothing},
    ]


# --- whatever the words say


@given(
    pool=st.lists(WORD, min_size=120, max_size=120),
    slot_words=st.lists(WORD, min_size=64, max_size=64),
    now=st.integers(0, 2**63 - 1),
)
def test_any_words_make_a_status(pool: list[int], slot_words: list[int], now: int) -> None:
    """No word of the shared memory raises; no count is negative, and it is JSON."""
    with scoreboard() as board:
        for field, value in enumerate(pool):
            board.set_pool(field, value)
        for slot in range(SLOTS - 1):
            base = board.slot_at(slot)
            for n, value in enumerate(slot_words):
                board.words[base + n] = value
        found = status(board.snapshot(), NOTHING_SAID, now)

    assert json.loads(json.dumps(found, allow_nan=False)).keys() == found.keys()
    requests = found["requests"]
    assert requests["total"] == sum(requests[key] for key in TOTALS)
    assert 0 <= requests["in_progress"] <= SLOTS * MOST_IN_PROGRESS
    assert 0 <= found["utilization"] <= 1
    assert all(number >= 0 for number in _numbers(found))


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, (int, float)):
        yield value


def test_saturation_is_told_with_reason_and_remedy(board: Scoreboard) -> None:
    """A pool that cannot keep up says for how long, why, and what to do; a word that makes no sense says nothing."""
    assert seen(board)["saturation"] is None
    publish_saturation(board, SaturationCause.WORKERS_WAIT, 12.5)
    found = seen(board)["saturation"]
    assert (found["cause"], found["seconds"]) == ("workers_wait", 12.5)
    assert "stay open" in found["reason"]
    assert "client_timeout" in found["remedy"]
    board.set_pool(PoolField.SATURATION, 77)
    assert seen(board)["saturation"] is None
