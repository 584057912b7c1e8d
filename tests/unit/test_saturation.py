"""A pool that cannot keep up says so: when, how often, and which of the two causes it names."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from prefork.master import saturation
from prefork.master.saturation import (
    GAP,
    PATIENCE,
    Saturation,
    clients_waiting,
    cpu_of,
    share_of_cpu,
)
from prefork.metrics.saturation import REASONS, REMEDIES
from prefork.workers.parking import RESUMED, Link, ResumeQueue, send
from prefork.workers.pool.spares import Spares
from prefork.workers.pool.views import PoolView, WorkerView
from prefork.workers.scoreboard import PoolField, Scoreboard
from prefork.workers.states import Phase, SaturationCause

if TYPE_CHECKING:
    from collections.abc import Callable


def view(
    *,
    busy: int = 2,
    idle: int = 0,
    waiting: bool = True,
    phase: Phase = Phase.SERVING,
    now: float = 0.0,
) -> PoolView:
    """Return a pool with this many workers."""
    workers = [
        WorkerView(
            slot=slot,
            ready=True,
            idle=slot >= busy,
            generation=0,
            spawned_at=0.0,
            busy_since=None if slot >= busy else now - 4.5,
        )
        for slot in range(busy + idle)
    ]
    return PoolView(
        phase=phase,
        floor=2,
        workers=tuple(workers),
        spares=Spares(2),
        work_waiting=waiting,
    )


class Watched:
    """A pool whose saturation is looked at. share: how much of their time the workers compute."""

    def __init__(
        self, lines: list[tuple[str, dict[str, Any]]], share: float, *, parks: bool = False
    ) -> None:
        self.lines = lines
        self.now = 100.0
        self.cpu = 0.0
        self.share = share
        self.published = (SaturationCause.NONE, 0.0)
        self._saturation = Saturation(
            [],
            self._publish,
            lambda _listeners: 16,
            lambda _pids: {7: self.cpu, 8: self.cpu},
            parks=parks,
        )

    def _publish(self, cause: SaturationCause, seconds: float) -> None:
        self.published = cause, seconds

    def look(self, seconds: float, **pool: Any) -> None:
        """Let time go by in steps of 0.4 s, with the pool in this state."""
        end = self.now + seconds
        while self.now < end:
            self._saturation.look(view(now=self.now, **pool), {7, 8}, self.now)
            self.now += 0.4
            self.cpu += 0.4 * self.share


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watched]:
    """``watched(share=0.0, parks=False)`` returns a pool; its ``lines`` are the events that were logged."""
    lines: list[tuple[str, dict[str, Any]]] = []

    def note(_level: int, _subject: str, what: str, **facts: Any) -> None:
        lines.append((what, facts))

    monkeypatch.setattr(saturation.log, "event", note)
    return lambda share=0.0, parks=False: Watched(lines, share, parks=parks)


def test_one_line_after_ten_seconds_and_one_when_it_is_over(
    watched: Callable[..., Watched],
) -> None:
    """A saturated pool says so once, with how many wait and how old the oldest request is; then that it is over."""
    pool = watched()
    pool.look(PATIENCE - 1)
    assert pool.lines == []
    pool.look(60)
    ((what, facts),) = pool.lines
    assert what == "saturated: all workers are busy and clients wait"
    assert (facts["workers"], facts["waiting"], facts["oldest_request"]) == (2, 16, 4.5)
    pool.look(GAP + 1, idle=1)
    assert pool.lines[1][0] == "no longer saturated"
    assert pool.lines[1][1]["seconds"] == pytest.approx(PATIENCE - 1 + 60, abs=1)
    pool.look(PATIENCE + 1)
    assert len(pool.lines) == 3


@pytest.mark.parametrize("calm", [{"idle": 1}, {"waiting": False}, {"busy": 0}])
def test_short_rush_and_busy_pool_say_nothing(
    watched: Callable[..., Watched], calm: dict[str, Any]
) -> None:
    """A rush that ends within ten seconds is no line, and neither are busy workers without waiting clients."""
    pool = watched()
    for _ in range(5):
        pool.look(PATIENCE - 2)
        pool.look(GAP + 1, **calm)
    pool.look(100, **calm)
    assert pool.lines == []


def test_moment_between_two_requests_ends_nothing(watched: Callable[..., Watched]) -> None:
    """A look that finds a worker between two short requests does not end an episode."""
    pool = watched()
    for _ in range(10):
        pool.look(1)
        pool.look(0.4, idle=1)
    assert len(pool.lines) == 1


@pytest.mark.parametrize(
    ("share", "parks", "cause"),
    [
        (0.02, False, SaturationCause.WORKERS_WAIT),
        (0.02, True, SaturationCause.HANDLERS_WAIT),
        (0.9, False, SaturationCause.WORKERS_COMPUTE),
        (0.9, True, SaturationCause.WORKERS_COMPUTE),
    ],
)
def test_remedy_fits_the_cause(
    watched: Callable[..., Watched], share: float, cause: SaturationCause, *, parks: bool
) -> None:
    """Workers that wait have connections that stay open, or slow handlers where these are parked."""
    pool = watched(share=share, parks=parks)
    pool.look(PATIENCE + 1)
    assert pool.lines[0][1]["remedy"] == f"{REASONS[cause]}: {REMEDIES[cause]}"
    assert pool.lines[0][1]["cpu"] == f"{share:.0%}"


def test_length_and_cause_are_published_while_it_lasts(watched: Callable[..., Watched]) -> None:
    """The scoreboard has the cause and the length of an episode, follows a change of the cause, and is clear after it."""
    pool = watched(share=0.0)
    pool.look(PATIENCE - 1)
    assert pool.published == (SaturationCause.NONE, 0.0)
    pool.look(3)
    cause, seconds = pool.published
    assert cause is SaturationCause.WORKERS_WAIT
    assert seconds == pytest.approx(PATIENCE + 2, abs=1)
    pool.share = 1.0
    pool.look(2 * PATIENCE)
    assert pool.published[0] is SaturationCause.WORKERS_COMPUTE
    pool.look(GAP + 1, idle=1)
    assert pool.published == (SaturationCause.NONE, 0.0)
    assert len(pool.lines) == 2


def test_parked_clients_that_have_spoken_wait() -> None:
    """Clients whose connections come back from the lot count as those that wait, also where there are no others."""
    board = Scoreboard.create(1)
    link = Link.make("tcp://here:1")
    ends = [socket.socket(fileno=fd) for fd in link.fds]
    queue = ResumeQueue.of_unclaimed(link)
    try:
        assert clients_waiting(board, [], []) is None
        assert clients_waiting(board, [queue], []) == 0
        send(ends[1], RESUMED, 0)
        board.set_pool(PoolField.RESUMED_WAITING, 5)
        assert clients_waiting(board, [queue], []) == 6
        board.set_pool(PoolField.RESUMED_WAITING, -1)
        assert clients_waiting(board, [queue], []) == 1
    finally:
        board.close()
        for end in ends:
            end.close()


def test_pool_that_stops_is_not_saturated(watched: Callable[..., Watched]) -> None:
    """A pool that drains serves its queue with all workers, and that is no shortage."""
    pool = watched()
    pool.look(PATIENCE + 1)
    pool.look(0.4, phase=Phase.DRAINING)
    assert pool.published == (SaturationCause.NONE, 0.0)


def test_share_counts_workers_that_lived_all_the_while() -> None:
    """A worker that was replaced meanwhile counts for neither side; without any the share is 0."""
    assert share_of_cpu({7: 1.0, 8: 5.0}, {7: 6.0, 9: 50.0}, 10) == 0.5
    assert share_of_cpu({7: 1.0}, {8: 6.0}, 10) == 0.0


def test_cpu_of_processes() -> None:
    """The time of a live process is that of its own clock; a process that does not exist is left out."""
    used = cpu_of({os.getpid(), 2**22 + 7})
    assert set(used) == {os.getpid()}
    assert used[os.getpid()] > 0
