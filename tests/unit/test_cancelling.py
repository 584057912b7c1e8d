"""Who is asked to end its request, when, and what follows: the policy, at instants and through virtual hours."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as some

from prefork.workers.cancel import (
    FLAGS,
    CancelReason,
    ClientGone,
    RequestCancelled,
    RequestTimeout,
    cancelled_in,
    exception_for,
    flags_in,
    word_of,
)
from prefork.workers.pool.cancelling import CLIENT_LOOK, FIRST_REPEAT, LAST_REPEAT, MIN_AGE
from prefork.workers.pool.policy import decide
from prefork.workers.pool.views import Cancel, Plan, PoolView, WorkerView
from prefork.workers.settings import Settings
from prefork.workers.states import Phase
from tests.support.simulator import Arrival, Machine, Simulator, lognormal, poisson

pytestmark = pytest.mark.once  # values in, values out

NOW = 1000.0
SOFT = Settings(workers=1, soft_timeout=2.0)
TIMEOUT, CPU = FLAGS[CancelReason.SOFT_TIMEOUT], FLAGS[CancelReason.CPU_TIMEOUT]
COMMAND = FLAGS[CancelReason.COMMAND]


def plan(
    now: float = NOW, settings: Settings = SOFT, phase: Phase = Phase.SERVING, **facts: object
) -> Plan:
    """Decide for a pool of one worker with a request."""
    usual = {"ready": True, "idle": False, "generation": 0, "spawned_at": 0.0, "seen_at": now}
    one = WorkerView(0, **{**usual, **facts})  # type: ignore[arg-type]
    return decide(PoolView(phase, 1, (one,), stop_by=NOW + 60), settings, now)


def asked(flags: int, **facts: object) -> dict[str, object]:
    """Return what a worker looks like that was asked at NOW."""
    return {"busy_since": NOW - 2, "asked": flags, "asked_at": NOW, "times_asked": 1, **facts}


def test_request_at_its_soft_timeout_is_asked_once() -> None:
    """At soft_timeout a request is asked to end, not before and not again for that; nothing else is done to its worker."""
    before = plan(NOW - 0.1, busy_since=NOW - 2)
    assert (before.cancel, before.wake) == ((), NOW)
    first = plan(busy_since=NOW - 2)
    assert (first.cancel, first.dump, first.kill) == ((Cancel(0, TIMEOUT),), (), ())
    assert plan(NOW + 9, **asked(TIMEOUT, has_heard=True)).cancel == ()


def test_extended_deadline_moves_the_soft_one() -> None:
    """The time that a handler has asked for is added to soft_timeout, too."""
    assert plan(NOW + 4.9, busy_since=NOW - 2, extension=5.0).cancel == ()
    assert plan(NOW + 5, busy_since=NOW - 2, extension=5.0).cancel == (Cancel(0, TIMEOUT),)


@pytest.mark.parametrize("phase", [Phase.NOT_READY, Phase.DRAINING, Phase.LEAVING])
def test_request_is_asked_also_while_the_pool_stops(phase: Phase) -> None:
    """A request is asked to end in every phase in which it may go on."""
    assert plan(phase=phase, busy_since=NOW - 2, leave_by=NOW + 9).cancel == (Cancel(0, TIMEOUT),)


@pytest.mark.parametrize(
    "facts",
    [
        {"busy_since": None, "idle": True},
        {"busy_since": NOW - 9, "killed": True},
        {"busy_since": NOW - 9, "ready": False},
    ],
)
def test_nothing_is_asked_where_no_request_can_hear(facts: dict[str, object]) -> None:
    """An idle worker, one that boots and one that was killed are not asked, nor is any by a pool that kills."""
    assert plan(**{"is_unwanted": True, **facts}).cancel == ()
    assert plan(phase=Phase.STOPPING_NOW, busy_since=NOW - 9).cancel == ()


def test_signal_is_repeated_until_it_was_heard() -> None:
    """A worker that has not heard gets the signal again, ever less often, and never more often than once a second in the end."""
    first = asked(TIMEOUT)
    assert plan(NOW + FIRST_REPEAT * 0.9, **first).cancel == ()
    assert plan(NOW + FIRST_REPEAT * 0.9, **first).wake == NOW + FIRST_REPEAT
    assert plan(NOW + FIRST_REPEAT, **first).cancel == (Cancel(0, 0),)
    many = asked(TIMEOUT, times_asked=500)
    assert plan(NOW + LAST_REPEAT * 0.9, **many).cancel == ()
    assert plan(NOW + LAST_REPEAT, **many).cancel == (Cancel(0, 0),)


def test_another_reason_is_another_asking() -> None:
    """A request that goes on after one reason is asked for the next one, and only for that."""
    heard = asked(TIMEOUT, has_heard=True)
    assert plan(**heard, is_unwanted=True).cancel == (Cancel(0, COMMAND),)
    both = plan(busy_since=NOW - 2, is_unwanted=True)
    assert both.cancel == (Cancel(0, TIMEOUT | COMMAND),)


def test_cpu_time_is_what_counts_for_cpu_timeout() -> None:
    """A request that has waited is not asked; the plan wakes when the rest could be used up, and asks when it is."""
    settings = Settings(workers=1, cpu_timeout=2.0)
    waits = plan(settings=settings, busy_since=NOW - 60, cpu_used=0.5)
    assert (waits.cancel, waits.wake) == ((), NOW + 1.5)
    assert plan(settings=settings, busy_since=NOW - 60, cpu_used=2.0).cancel == (Cancel(0, CPU),)
    assert plan(settings=settings, busy_since=NOW - 60, cpu_used=None).cancel == ()


def test_client_is_looked_at_once_a_second() -> None:
    """With check_client a busy worker is to look each second, beginning a second after its request began."""
    settings = Settings(workers=1, check_client="reset")
    young = plan(settings=settings, busy_since=NOW - 0.9)
    assert (young.cancel, young.wake) == ((), NOW - 0.9 + CLIENT_LOOK)
    assert plan(settings=settings, busy_since=NOW - 1).cancel == (Cancel(0, 0, look=True),)
    looked = plan(settings=settings, busy_since=NOW - 9, client_looked_at=NOW - 0.5)
    assert (looked.cancel, looked.wake) == ((), NOW + 0.5)
    assert plan(busy_since=NOW - 1).cancel == ()


def test_request_of_a_round_is_not_asked_while_the_round_may_go_on() -> None:
    """No request younger than a millisecond is asked: the datagrams of a round share one number."""
    young = plan(busy_since=NOW - MIN_AGE / 2, is_unwanted=True)
    assert (young.cancel, young.wake) == ((), NOW + MIN_AGE / 2)
    short = Settings(workers=1, soft_timeout=MIN_AGE / 100)
    assert plan(settings=short, busy_since=NOW - MIN_AGE / 2).cancel == ()


@pytest.mark.once  # arithmetic in virtual time
@pytest.mark.simulated_hours
def test_each_request_of_hours_ends_in_time_and_none_too_early() -> None:
    """Through hours of load a request that is short ends by itself, and one that is long ends soon after soft_timeout."""
    dice = random.Random(18)
    arrivals = [
        Arrival(one.at, one.service, dice.choice([0.0, 0.0, 0.0, one.service / 2]))
        for one in poisson(dice, 4, lognormal(1.0, 1.2), 3600)
    ]
    settings = Settings(workers=8, max_children=8, soft_timeout=2.0)
    machine = Machine()
    record = Simulator(settings, arrivals, machine).run(4000)

    assert len(record.served) + len(record.cancelled) == len(arrivals)
    soft, deaf = settings.soft_timeout or 0, {one.at: one.deaf for one in arrivals}
    service = {one.at: one.service for one in arrivals}
    late = 2 * machine.reaction + 0.001
    for one in record.served:
        took = one.ended - one.began
        assert took == pytest.approx(service[one.arrived])
        assert took <= max(soft, deaf[one.arrived]) + LAST_REPEAT + late
    for one in record.cancelled:
        took = one.ended - one.began
        assert took >= max(soft, deaf[one.arrived])
        assert took <= max(soft + late, deaf[one.arrived] + LAST_REPEAT + late)
    assert len(record.cancelled) > 100
    signals = Counter(taken for taken, _ in record.signals)
    longest = max(deaf.values())
    assert max(signals.values()) <= 7 + longest / LAST_REPEAT


# --- the word and the exceptions


@given(request=some.integers(1, 2**59 - 1), other=some.integers(), flags=some.integers(0, 15))
def test_word_is_for_one_request(request: int, other: int, flags: int) -> None:
    """A word has its flags for the request that it names, and none for any other; each is within the range of a word."""
    word = word_of(request, flags)
    assert flags_in(word, request) == flags
    assert 0 <= word < 2**63
    assert 0 <= word_of(other, flags) < 2**63
    if other % 2**59 != request:
        assert flags_in(word, other) == 0


@pytest.mark.parametrize("request_number", [0, -1])
def test_no_request_is_asked_for_nothing(request_number: int) -> None:
    """Where no request is in hand, no word asks for its end."""
    assert flags_in(word_of(request_number, 15), request_number) == 0


def test_cancelled_request_is_found_in_a_group() -> None:
    """A group that consists of ends that were asked for is one; with any other exception in it, it is none."""
    one, nested = RequestTimeout(), BaseExceptionGroup("inner", [ClientGone()])
    assert cancelled_in(one) is one
    assert cancelled_in(BaseExceptionGroup("outer", [one, nested])) is one
    for other in (ValueError(), KeyboardInterrupt(), BaseExceptionGroup("", [SystemExit()])):
        assert cancelled_in(other) is None
        assert cancelled_in(BaseExceptionGroup("outer", [one, other])) is None


def test_exceptions_say_why() -> None:
    """Each reason has its exception, which a broad ``except Exception`` of a handler does not swallow."""
    for reason in CancelReason:
        error = exception_for(reason, "here")
        assert (error.reason, error.place, str(error)) == (reason, "here", reason.value)
        assert not isinstance(error, Exception)
    assert isinstance(exception_for(CancelReason.SOFT_TIMEOUT, ""), RequestTimeout)
    assert RequestCancelled().reason is CancelReason.HANDLER
    assert [*itertools.islice(CancelReason, 2)] == ["soft_timeout", "cpu_timeout"]
