"""Deadlines of requests: dumped when they pass, killed a moment later, slow ones reported once."""

from __future__ import annotations

import pytest

from prefork.workers.pool.deadlines import DUMP_TIME
from prefork.workers.pool.policy import decide
from prefork.workers.pool.views import Kill, Plan, PoolView, WorkerView
from prefork.workers.settings import Settings
from prefork.workers.states import ExitCause, ExitKind, Phase

NOW = 1000.0
SETTINGS = Settings(workers=1, request_timeout=10.0, slow_request=2.0)
TIMED_OUT = Kill(0, ExitCause(ExitKind.REQUEST_TIMEOUT))


def plan(now: float = NOW, settings: Settings = SETTINGS, **facts: object) -> Plan:
    """Decide for a pool of one worker with a request."""
    usual = {"ready": True, "idle": False, "generation": 0, "spawned_at": 0.0, "slow_noted": True}
    one = WorkerView(0, **{**usual, **facts})  # type: ignore[arg-type]
    return decide(PoolView(Phase.SERVING, 1, (one,)), settings, now)


def test_request_at_its_deadline_is_dumped_then_killed() -> None:
    """At request_timeout the stacks are dumped, DUMP_TIME later the worker is killed for that."""
    since = NOW - 10

    before = plan(NOW - 0.1, busy_since=since)
    assert (before.dump, before.kill, before.wake) == ((), (), NOW)
    assert plan(busy_since=since).dump == (0,)
    dumped = plan(NOW + 0.1, busy_since=since, dumped_at=NOW)
    assert (dumped.dump, dumped.kill, dumped.wake) == ((), (), NOW + DUMP_TIME)
    assert plan(NOW + DUMP_TIME, busy_since=since, dumped_at=NOW).kill == (TIMED_OUT,)


def test_request_that_ends_after_the_dump_is_spared() -> None:
    """A worker that is idle again, or has another request, between dump and kill lives."""
    late = NOW + DUMP_TIME

    assert plan(late, busy_since=None, idle=True, dumped_at=NOW).kill == ()
    assert plan(late, busy_since=NOW + 0.1, dumped_at=NOW).kill == ()


def test_extended_deadline_holds() -> None:
    """What the handler has asked for is added to request_timeout, and no more."""
    extended = {"busy_since": NOW - 10, "extension": 5.0}

    assert plan(NOW + 4.9, **extended).dump == ()
    assert plan(NOW + 5, **extended).dump == (0,)


def test_without_a_timeout_a_request_may_take_for_ever() -> None:
    """request_timeout is off by default."""
    assert plan(busy_since=0.0, settings=Settings(workers=1)).dump == ()


def test_deadline_holds_for_a_leaving_worker() -> None:
    """A worker that was asked to leave is killed at what comes first, and for that."""
    since = NOW - 10 - DUMP_TIME
    dumped = NOW - DUMP_TIME

    first = plan(busy_since=since, leave_by=NOW + 9, dumped_at=dumped)
    assert first.kill == (TIMED_OUT,)
    assert plan(busy_since=NOW, leave_by=NOW - DUMP_TIME, dumped_at=dumped).kill == (Kill(0, None),)


def test_worker_that_leaves_unasked_has_graceful_timeout() -> None:
    """A worker that leaves by itself is dumped and killed as one that was asked to, counted from when that was seen."""
    leaving = {"leaving_since": NOW, "busy_since": None}
    end = NOW + SETTINGS.graceful_timeout

    assert plan(end - 0.1, **leaving).dump == ()
    assert plan(end, **leaving).dump == (0,)
    killed = plan(end + DUMP_TIME, **leaving, dumped_at=end).kill
    assert killed == (Kill(0, ExitCause(ExitKind.EXITED)),)


def test_slow_request_is_reported_once() -> None:
    """After slow_request the worker is to be dumped and nothing else; the plan wakes for it."""
    slow = plan(busy_since=NOW - 2, slow_noted=False)

    assert (slow.slow, slow.dump, slow.kill) == ((0,), (), ())
    assert plan(busy_since=NOW - 2).slow == ()
    assert plan(busy_since=NOW - 1, slow_noted=False).wake == NOW + 1


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.LEAVING])
def test_deadline_holds_while_the_pool_stops(phase: Phase) -> None:
    """request_timeout ends a request also while the pool stops."""
    one = WorkerView(
        0,
        ready=True,
        idle=False,
        generation=0,
        spawned_at=0.0,
        busy_since=NOW - 10,
        leave_by=NOW + 20,
    )
    view = PoolView(phase, 1, (one,), stop_by=NOW + 20)

    assert decide(view, SETTINGS, NOW).dump == (0,)
