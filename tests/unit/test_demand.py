"""How many workers a load needs: the formula, at its edges too, and which readings are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from docs.images import autoscaler
from prefork.metrics.demand import APART, SPAN, TARGET, Counts, Demand, workers_needed
from prefork.metrics.names import METRICS
from prefork.metrics.reading import Columns, counts_of
from prefork.workers.scoreboard import MOST_IN_PROGRESS, SlotField
from tests.support.boards import SECOND, occupy, scoreboard, take_request

if TYPE_CHECKING:
    from collections.abc import Sequence

START = Counts(100.0)


@pytest.mark.parametrize(
    ("last", "needed"),
    [
        # 10 requests a second of 0.2 s keep 2 workers busy.
        (Counts(110.0, taken=100, busy=20.0), 2 / TARGET),
        # As many again were queued: an overloaded pool needs twice what it has.
        (Counts(110.0, taken=100, busy=20.0, queued=100), 4 / TARGET),
        # Half of them were shed, which took no time: the others show how long a request takes, and
        # those that were shed had arrived, too.
        (Counts(110.0, taken=100, shed=50, busy=20.0), 4 / TARGET),
        (Counts(110.0, taken=100, shed=50, busy=20.0, queued=50), 6 / TARGET),
        # Nothing has ended yet, and two wait: one worker for each.
        (Counts(110.0, taken=0, busy=30.0, queued=2), 5 / TARGET),
        # A queue that was emptied has not arrived now.
        (Counts(110.0, taken=0), 0.0),
        (Counts(100.0, taken=7, busy=3.0), 0.0),
        # Words that have fallen, as after a stray write.
        (Counts(110.0, taken=-9, shed=-9, busy=-3.0, queued=-9), 0.0),
    ],
)
def test_formula(last: Counts, needed: float) -> None:
    """The number follows arrivals and the mean service time, and is neither negative nor more than one for each request."""
    assert workers_needed(START, last) == pytest.approx(min(needed, 102 / TARGET))


def test_no_more_workers_than_requests() -> None:
    """One long request beside many short ones that wait asks for one worker for each of them at most."""
    last = Counts(110.0, taken=1, busy=10.0, queued=3)
    assert workers_needed(START, last) == pytest.approx(4 / TARGET)


def updated(demand: Demand, readings: Sequence[Counts], started: float = 0.0) -> list[float]:
    """Return what each reading says, in requests in hand."""
    return [round(demand.update(one, started) * TARGET, 3) for one in readings]


def steady(begin: float, end: float, step: float, busy: float) -> list[Counts]:
    """Return readings of a load that keeps this many workers busy from ``begin`` on."""
    times = [begin + step * n for n in range(int((end - begin) / step) + 1)]
    return [Counts(at, int((at - begin) * 10), 0, (at - begin) * busy) for at in times]


def test_young_pool_is_looked_at_as_a_whole() -> None:
    """The first scrapes of a pool compare with its start."""
    assert updated(Demand(), steady(100.0, 150.0, 10.0, 3.0), 100.0) == [0.0, *[3.0] * 5]


def test_span_is_the_last_minute() -> None:
    """A change of the load shows within SPAN, however often it is scraped."""
    for step in (1.0, 15.0, SPAN):
        demand = Demand()
        updated(demand, steady(0.0, 600.0, step, 3.0), 0.0)
        rest = [
            Counts(one.at + 600, one.taken + 6000, 0, one.busy + 1800)
            for one in steady(0.0, 120.0, step, 8.0)
        ]
        assert updated(demand, rest, 0.0)[-1] == pytest.approx(8.0)
        assert len(demand._kept) <= SPAN / APART + 2


def test_counts_come_from_the_scoreboard() -> None:
    """Requests in hand are taken, and the time so far is busy time; stray words make no negative number."""
    now = 1000 * SECOND
    with scoreboard(2, at=now) as board:
        writer = occupy(board, 0, 4711, at=now)
        board.words[board.slot_at(0) + SlotField.BUSY_NS] = 5 * SECOND
        board.words[board.slot_at(0) + SlotField.DURATIONS] = 7
        board.words[board.slot_at(1) + SlotField.BUSY_NS] = -SECOND
        take_request(writer, now - 3 * SECOND)
        found = counts_of(Columns(board.snapshot().slots), now, 4)
    assert found == Counts(1000.0, taken=8, shed=0, busy=8.0, queued=4)


def test_every_request_of_a_worker_with_threads_has_arrived() -> None:
    """All requests that the threads of a worker have in hand are arrivals; words that nothing can be are bounded."""
    now = 1000 * SECOND
    with scoreboard(2, at=now) as board:
        words, slot = board.words, board.slot_at(0)
        take_request(occupy(board, 0, 4711, at=now), now - 3 * SECOND)
        # Left by the worker before: nothing is in hand in the second slot.
        words[board.slot_at(1) + SlotField.IN_PROGRESS] = 9
        found = []
        for word in (-1, 0, 3, 2**63 - 1):
            words[slot + SlotField.IN_PROGRESS] = word
            found.append(counts_of(Columns(board.snapshot().slots), now, 0))
    assert [one.taken for one in found] == [1, 1, 3, MOST_IN_PROGRESS]
    assert {one.busy for one in found} == {3.0}


@pytest.mark.simulated_hours
def test_day_of_an_autoscaler_is_up_to_date() -> None:
    """The figure and the table of the documents come from the code as it is, and following the need waits less."""
    text = autoscaler.DOCUMENT.read_text("utf-8")
    assert autoscaler.document(text) == text, "run: make docs"
    assert autoscaler.PICTURE.read_text("utf-8") == autoscaler.picture(), "run: make docs"
    need, cpu = (autoscaler.day(name) for name in autoscaler.WISHES)
    assert need.minutes_of_waiting * 5 < cpu.minutes_of_waiting
    assert need.hours < 1.1 * cpu.hours


def test_help_has_the_formula() -> None:
    """The help of the metric names the target."""
    assert f"/ {TARGET}" in METRICS["prefork_workers_needed"].help
