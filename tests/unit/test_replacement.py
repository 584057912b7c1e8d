"""Voluntary replacement: start, ready, retire; a tenth of the pool at a time, within max_children."""

from __future__ import annotations

import pytest

from prefork.workers.pool.policy import decide
from prefork.workers.pool.views import Plan, PoolView, WorkerView
from prefork.workers.settings import Settings
from prefork.workers.states import ExitKind, Phase, StartReason

NOW = 1000.0


def worker(slot: int, **facts: object) -> WorkerView:
    """Invent a worker: ready, idle, a minute old."""
    usual = {"ready": True, "idle": True, "generation": 0, "spawned_at": NOW - 60}
    return WorkerView(slot, **{**usual, **facts})  # type: ignore[arg-type]


def plan(*pool: WorkerView, floor: int, most: int = 40, **facts: object) -> Plan:
    """Decide for an invented pool that serves."""
    settings = Settings(
        workers=floor,
        max_children=most,
        max_lifetime=3600.0,
        max_requests=1000,
        max_memory=2**28,
        jitter=0.5,
    )
    return decide(PoolView(Phase.SERVING, floor, pool, **facts), settings, NOW)  # type: ignore[arg-type]


def left(decided: Plan) -> list[tuple[int, ExitKind]]:
    """Return who is asked to leave, and why."""
    return [(one.slot, one.cause.kind) for one in decided.retire]


@pytest.mark.parametrize("recycle_request", [ExitKind.MAX_REQUESTS, ExitKind.MAX_MEMORY])
def test_successor_comes_first(recycle_request: ExitKind) -> None:
    """A worker at its limit goes on while its successor starts, and leaves when that is ready."""
    tired, fresh = worker(0, recycle_request=recycle_request), worker(1)

    first = plan(tired, fresh, floor=2)
    assert first.starts == (StartReason.RECYCLED,)
    assert left(first) == []

    starting = worker(2, ready=False, idle=False, spawned_at=NOW)
    assert plan(tired, fresh, starting, floor=2).starts == ()
    assert left(plan(tired, fresh, starting, floor=2)) == []

    last = plan(tired, fresh, worker(2), floor=2)
    assert left(last) == [(0, recycle_request)]
    assert last.starts == ()


@pytest.mark.parametrize("recycle_request", [ExitKind.MAX_REQUESTS, ExitKind.MAX_MEMORY])
def test_request_without_a_limit_is_no_request(recycle_request: ExitKind) -> None:
    """Where a limit is not set, no worker can have reached it: another worker has written the word."""
    view = PoolView(Phase.SERVING, 2, (worker(0, recycle_request=recycle_request), worker(1)))
    decided = decide(view, Settings(workers=2), NOW)

    assert (decided.starts, decided.retire) == ((), ())


def test_leaving_worker_is_not_replaced_twice() -> None:
    """Once it has been asked to leave, a recycled worker asks for nothing any more."""
    leaving = worker(0, recycle_request=ExitKind.MAX_REQUESTS, leave_by=NOW + 25)

    decided = plan(leaving, worker(1), worker(2), floor=2)
    assert (decided.starts, decided.retire) == ((), ())


def test_lifetime_ends_within_its_jitter() -> None:
    """max_lifetime less the worker's share of jitter is its end; the plan wakes for it."""
    old = worker(0, spawned_at=NOW - 3600 * 0.75, spread=0.5)
    young = worker(1, spawned_at=NOW - 3600 * 0.75, spread=0.4)

    assert plan(old, young, floor=2).starts == (StartReason.RECYCLED,)
    assert left(plan(old, young, worker(2), floor=2)) == [(0, ExitKind.MAX_LIFETIME)]
    assert plan(young, floor=1).wake == pytest.approx(NOW + 3600 * 0.05)


def test_a_tenth_at_a_time() -> None:
    """Of thirty workers that are all at their limit three are replaced at once, of five one."""
    for count, at_once in ((30, 3), (5, 1)):
        pool = [worker(slot, recycle_request=ExitKind.MAX_REQUESTS) for slot in range(count)]
        assert plan(*pool, floor=count).spawn == at_once

        successors = [worker(count + n) for n in range(at_once)]
        decided = plan(*pool, *successors, floor=count)
        assert len(decided.retire) == at_once
        assert decided.starts == ()


def test_without_room_one_leaves_first() -> None:
    """At max_children a worker at its limit leaves before its successor starts, a tenth of them away at most."""
    tired = [worker(slot, recycle_request=ExitKind.MAX_REQUESTS) for slot in range(3)]

    decided = plan(*tired, worker(3), floor=4, most=4)
    assert left(decided) == [(0, ExitKind.MAX_REQUESTS)]
    assert decided.starts == ()

    gone = plan(*tired[1:], worker(3), floor=4, most=4)
    assert gone.spawn == 1
    assert gone.retire == ()

    booting = worker(0, ready=False, idle=False, spawned_at=NOW)
    assert plan(booting, *tired[1:], worker(3), floor=4, most=4).retire == ()


def test_older_generation_is_replaced_first_and_as_reloaded() -> None:
    """Workers of an older generation are outdated, whatever else they are."""
    old, tired = (
        worker(0, generation=0),
        worker(1, generation=1, recycle_request=ExitKind.MAX_REQUESTS),
    )

    assert plan(old, tired, floor=2, oldest_generation=1).starts == (StartReason.RELOADED,)
    ready = worker(2, generation=1)
    assert left(plan(old, tired, ready, floor=2, oldest_generation=1)) == [(0, ExitKind.RELOADED)]


def test_idle_worker_is_replaced_before_a_busy_one() -> None:
    """Of those at their limit an idle one leaves first."""
    busy = worker(0, recycle_request=ExitKind.MAX_REQUESTS, idle=False)
    idle = worker(1, recycle_request=ExitKind.MAX_REQUESTS)

    assert left(plan(busy, idle, worker(2), floor=2)) == [(1, ExitKind.MAX_REQUESTS)]


def test_reasons_of_a_start() -> None:
    """Those who died unexpectedly are respawned, load grows, the rest is a start."""
    spread = Settings(workers=2, max_children=40, min_spare=1)
    busy = [worker(slot, idle=False) for slot in range(2)]

    assert plan(worker(0), floor=3, lost=1).starts == (StartReason.RESPAWNED, StartReason.STARTED)
    grown = decide(PoolView(Phase.SERVING, 2, tuple(busy)), spread, NOW)
    assert grown.starts == (StartReason.GREW,)


def test_shrinking_spares_whoever_has_a_request() -> None:
    """When load goes down no busy worker is asked to leave; when the floor is lowered by a signal, one may be."""
    busy = [worker(slot, idle=False) for slot in range(3)]
    following = Settings(workers=2, max_children=40, min_spare=1)
    # With memory for one more, the pool would grow to three, and nobody would be left over.
    full = PoolView(Phase.SERVING, 2, tuple(busy), affordable=0)

    assert left(plan(*busy, floor=2)) == [(0, ExitKind.SCALED_DOWN)]
    assert decide(full, following, NOW).retire == ()
