"""The process table, with invented processes: who has which slot, who counts as ready, who is lost."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.workers.identity import WorkerInfo, WorkerPipes
from prefork.workers.pool.failures import PROVEN
from prefork.workers.pool.handle import Dump, Handle
from prefork.workers.pool.table import PoolState, Table
from prefork.workers.scoreboard import LAYOUT, Scoreboard, SlotField
from prefork.workers.states import ExitCause, ExitKind, StartReason, WorkerState
from prefork.workers.system import Child

NOW = 1000.0

SCALED_DOWN = ExitCause(ExitKind.SCALED_DOWN)


def worker(slot: int, *, pid: int = 0, generation: int = 0, ready: bool = False) -> Handle:
    """Invent a worker."""
    pid = pid or 100 + slot
    return Handle(
        WorkerInfo(slot, generation, pid),
        Child(pid, pidfd=500 + pid),
        WorkerPipes(-1, -1, -1),
        spawned_at=NOW,
        ready_at=NOW if ready else None,
    )


def table_of(*workers: Handle, size: int = 4, lost: int = 0) -> Table:
    """Return a table that has these workers."""
    return Table(size, workers, lost)


# --- slots


def test_lowest_free_slots_are_given_first() -> None:
    """Free slots come lowest first, no more than asked for and no more than there are."""
    table = table_of(worker(1), worker(3), size=6)
    assert table.free_slots(0) == []
    assert table.free_slots(2) == [0, 2]
    assert table.free_slots(40) == [0, 2, 4, 5]
    assert table.slots == [1, 3]


def test_slot_has_one_worker() -> None:
    """A slot that is taken, or that does not exist, is given to no worker, and the table stays as it is."""
    table = table_of(worker(1), size=2)
    for wrong in (worker(1, pid=7), worker(2), worker(-1)):
        with pytest.raises(ValueError, match="slot"):
            table.add(wrong, StartReason.STARTED)
    assert table.pids == {101}


def test_worker_is_found_by_its_slot_and_its_pidfd() -> None:
    """The table finds its workers by slot and by pidfd, and knows all their pids."""
    one, two = worker(0), worker(2)
    table = table_of(one, two)
    assert table[2] is two
    assert table.with_pidfds({two.child.pidfd, 9}) == [two]
    assert table.pids == {100, 102}
    assert [*table] == [one, two]
    assert table.remove(0) is one
    assert len(table) == 1
    with pytest.raises(KeyError):
        table[0]


def test_table_may_change_while_it_is_gone_through() -> None:
    """A hook that has a worker collected does not disturb the loop that has called it."""
    table = table_of(worker(0), worker(1), worker(2))
    seen = [table.remove(handle.slot).slot for handle in table]
    assert seen == [0, 1, 2]


@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 7)), max_size=40),
    st.integers(1, 8),
)
def test_free_and_taken_slots_are_all_slots(steps: list[tuple[str, int]], size: int) -> None:
    """Whatever is added and removed, each slot is either free or has one worker, and pids are not mixed up."""
    table = Table(size)
    for pid, (step, slot) in enumerate(steps, start=1):
        if step == "add" and slot in table.free_slots(size):
            table.add(worker(slot, pid=pid), StartReason.STARTED)
        elif step == "remove" and slot in table.slots:
            assert table.remove(slot).slot == slot
        assert sorted([*table.free_slots(size), *table.slots]) == [*range(size)]
        assert {table[one].info.pid for one in table.slots} == table.pids
        assert len(table) == len(table.pids) <= size


# --- who is lost


def test_only_unexpected_ends_are_losses() -> None:
    """A worker that ends without having been asked to is lost; one that was asked to leave is not."""
    leaving = worker(1)
    leaving.ask_to_leave(SCALED_DOWN, NOW + 25)
    table = table_of(worker(0), leaving)
    table.remove(0)
    assert table.lost == 1
    table.remove(1)
    assert table.lost == 1


def test_killed_worker_is_lost_unless_it_was_asked_first() -> None:
    """What counts is whether the master wanted the worker gone, not how the process ended."""
    late, leaving = worker(0), worker(1)
    late.note_kill(ExitCause(ExitKind.REQUEST_TIMEOUT))
    leaving.ask_to_leave(SCALED_DOWN, NOW)
    leaving.note_kill(None)
    assert leaving.killed_for == SCALED_DOWN
    table = table_of(late, leaving)
    table.remove(0)
    table.remove(1)
    assert table.lost == 1


def test_respawn_makes_up_for_a_loss() -> None:
    """Only a worker that was forked as a respawn makes up for a lost one, and never for more than were lost."""
    table = table_of(lost=2)
    table.add(worker(0), StartReason.GREW)
    assert table.lost == 2
    for slot in (1, 2, 3):
        table.add(worker(slot), StartReason.RESPAWNED)
    assert table.lost == 0


def test_whole_pool_has_lost_none() -> None:
    """Losses are forgotten once as many workers live as are wanted, by whatever way they came."""
    table = table_of(worker(0), worker(1), lost=3)
    table.settle_lost(3)
    assert table.lost == 3
    table.settle_lost(2)
    assert table.lost == 0


# --- who is ready


def test_ready_workers_are_those_that_stay() -> None:
    """Workers that boot or that were asked to leave do not count as ready, those of older generations by wish."""
    leaving = worker(2, ready=True)
    leaving.ask_to_leave(SCALED_DOWN, NOW + 25)
    young = worker(3, generation=2, ready=True)
    table = table_of(worker(0, ready=True), worker(1), leaving, young)
    assert table.count_ready() == 2
    assert table.count_ready(generation=1) == 1
    assert table.count_ready(generation=3) == 0
    assert table.ready_pids == [100, 102, 103]


def test_older_generation_is_there_until_its_last_worker_has_ended() -> None:
    """A leaving worker of an older generation still counts as one: its process lives."""
    old = worker(0, generation=1)
    old.ask_to_leave(ExitCause(ExitKind.RELOADED), NOW)
    table = table_of(old, worker(1, generation=2))
    assert table.has_older(2)
    assert not table.has_older(1)
    table.remove(0)
    assert not table.has_older(2)


def test_worker_is_proven_once() -> None:
    """A worker is proven PROVEN seconds after it was ready, which is news once; one that boots never is."""
    booting, ready = worker(0), worker(1, ready=True)
    assert not booting.note_proven(NOW + 10 * PROVEN)
    assert not ready.note_proven(NOW + PROVEN - 0.01)
    assert ready.note_proven(NOW + PROVEN)
    assert not ready.note_proven(NOW + 2 * PROVEN)


@pytest.mark.parametrize("again", [WorkerState.IDLE, WorkerState.STARTING, 99])
def test_worker_that_serves_on_does_not_leave(again: int) -> None:
    """The word of a worker that leaves is believed for as long as it stands: a stray write is taken back."""
    ready = worker(0, ready=True)
    board = Scoreboard.create(1)
    state = board.slot_at(0) + SlotField.STATE
    found = []
    for instant, word in enumerate((WorkerState.RETIRING, WorkerState.RETIRING, again)):
        board.words[state] = word
        ready.note_leaving(board, NOW + instant)
        found.append(ready.leaving_since)
    board.close()
    assert found == [NOW, NOW, None]


# --- what is handed over


def test_table_goes_on_in_the_next_image() -> None:
    """All that is known of each worker survives a reload, a dump that is under way included."""
    leaving = worker(1, ready=True)
    leaving.ask_to_leave(SCALED_DOWN, NOW + 25)
    leaving.dump = Dump(dumped_at=NOW, show_at=NOW + 1, kill_follows=True)
    table = table_of(worker(0), leaving, lost=2)
    state = PoolState(3, 6, 8, LAYOUT, (4, 5), generation=7, lost=table.lost, workers=tuple(table))
    told = msgspec.json.decode(msgspec.json.encode(state), type=PoolState)
    assert told == state
    again = Table(4, told.workers, told.lost)
    assert ([*again], again.lost) == ([*table], 2)
    assert set(state.fds) >= {3, 4, 5, 6, 600, 601}
