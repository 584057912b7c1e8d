"""The pure parts of the chaos suite: its schedule, its judgments and its verdicts, on invented samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos import invariants, service
from tests.chaos.clients import Question
from tests.chaos.faults import Faults
from tests.chaos.invariants import (
    Baseline,
    Child,
    ChildrenJudge,
    Invariant,
    Promise,
    Rest,
    Role,
    Sample,
    ScrapeJudge,
    judge_deaths,
    judge_log,
    judge_rest,
)
from tests.chaos.schedule import KINDS, Lane, Sink, Temper, plan
from tests.chaos.verdict import (
    Drop,
    Excuse,
    Harm,
    Loss,
    Outcome,
    Result,
    explain,
    shortened,
    table,
    unexcused,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.chaos.invariants import Breach

pytestmark = pytest.mark.once  # the harness, not the product


# --- the schedule


@given(st.integers(0, 1000), st.integers(0, 20), st.sampled_from(Temper))
def test_schedule_follows_from_its_seed(seed: int, number: int, temper: Temper) -> None:
    """The same seed gives the same episode, and another episode of it another one."""
    assert plan(seed, number, 60, temper) == plan(seed, number, 60, temper)
    assert plan(seed, number, 60, temper) != plan(seed, number + 1, 60, temper)


def test_every_kind_of_fault_is_drawn_and_can_be_done() -> None:
    """Every kind has a method that does it, and comes up within some hours of a fierce run."""
    drawn = {
        event.kind
        for number in range(20)
        for one in plan(1, number, 600, Temper.FIERCE).rounds
        for event in one.events
    }

    assert drawn == {kind.name for kind in KINDS}
    assert all(callable(getattr(Faults, kind.name)) for kind in KINDS)


def test_calm_run_has_no_shortage_in_a_reload() -> None:
    """A calm run draws calm kinds only, and leaves no log unread whose every line counts."""
    calm = {kind.name for kind in KINDS if kind.temper is Temper.CALM}
    for number in range(20):
        one = plan(3, number, 300, Temper.CALM)
        drawn = {event.kind for part in one.rounds for event in part.events}

        assert drawn <= calm
        assert one.sink is Sink.LAZY_PIPE or "log_unread" not in drawn


def test_events_are_in_order_and_within_their_round() -> None:
    """A round lasts as long as it says, each of its lanes has events, and they are sorted."""
    for one in plan(5, 0, 120, Temper.CALM).rounds:
        times = [event.at for event in one.events]

        assert times == sorted(times)
        assert all(0 <= at < one.seconds for at in times)
        assert {event.lane for event in one.events} == set(Lane)


# --- which fault explains which loss


def loss(taker: int = 7, end: float = 10.0, outcome: Outcome = Outcome.CUT) -> Loss:
    """Return a loss that was sent 0.1 s before its end."""
    return Loss("tcp", "quick", outcome, taker, end - 0.1, end)


def explained(losses: list[Loss], *faults: Harm | Excuse) -> list[str]:
    """Return what explains each loss."""
    harms = [one for one in faults if isinstance(one, Harm)]
    excuses = [one for one in faults if isinstance(one, Excuse)]
    return [one.because for one in explain(losses, harms, excuses, patience=5)]


def test_dropped_datagram_explains_one_loss_of_its_time() -> None:
    """What the kernel has dropped of a full UDP queue explains as many datagrams that nobody had, sent at that time."""
    lost = Loss("udp", "quick", Outcome.SILENCE, 0, 10.0, 22.0)
    drop = Drop(9.8, 10.2, 1)
    found = [
        [one.because for one in explain(losses, [], [], 12, [drop])]
        for losses in ([lost], [lost, lost], [lost._replace(begin=11.0)], [lost._replace(taker=7)])
    ]
    assert found == [["dropped by the kernel"], ["dropped by the kernel", ""], [""], [""]]
    assert explain([lost._replace(listener="unixgram")], [], [], 12, [drop])[0].because == ""


def test_loss_is_explained_by_the_harm_to_its_own_worker_only() -> None:
    """A kill explains the loss of the request that this worker had, at that time, and no other one."""
    assert explained([loss()], Harm(7, "killed", 10, 10)) == ["killed"]
    assert explained([loss()], Harm(8, "killed", 10, 10)) == [""]
    assert explained([loss()], Harm(7, "killed", 4, 4)) == [""]
    assert explained([loss()], Harm(7, "killed", 11, 11)) == [""]
    assert explained([loss()]) == [""]


def test_harm_explains_one_loss() -> None:
    """A worker has one request at a time: one of two lost ones is unexplained."""
    assert sorted(explained([loss(), loss()], Harm(7, "killed", 10, 10))) == ["", "killed"]


def test_loss_that_was_not_read_is_explained_by_a_harm_that_explains_no_other() -> None:
    """A request of which no worker is known takes a harm that is left over, and is marked."""
    both = [loss(taker=0), loss(taker=7)]

    assert explained(both, Harm(7, "killed", 10, 10)) == ["", "killed"]
    assert explained(both, Harm(7, "killed", 10, 10), Harm(8, "killed", 10, 10)) == [
        "killed (before it was read)",
        "killed",
    ]


@pytest.mark.parametrize("outcome", [Outcome.WRONG, Outcome.REFUSED, Outcome.LATE])
def test_death_of_a_worker_explains_closed_connections_only(outcome: Outcome) -> None:
    """Wrong bytes, a refused connection and a late answer are not what a client of a dead worker sees."""
    assert explained([loss(outcome=outcome)], Harm(7, "killed", 10, 10)) == [""]


def test_late_answer_is_explained_by_a_while_in_which_nobody_is_answered() -> None:
    """The rest of the wait has to be short, and a promise that was not suspended explains nothing."""
    late = Loss("tcp", "quick", Outcome.LATE, 0, 5, 10)

    assert explained([late], Excuse("frozen", frozenset({Promise.ANSWER}), 6, 20)) == ["frozen"]
    assert explained([late], Excuse("frozen", frozenset({Promise.ANSWER}), 6, 7)) == [""]
    assert explained([late], Excuse("frozen", frozenset({Promise.SIZE}), 5, 20)) == [""]


def test_wrong_bytes_are_never_explained() -> None:
    """No fault lets a client get bytes that are not its own."""
    end = Excuse("killed", frozenset(Promise), 0, 100)

    assert explained([loss(outcome=Outcome.WRONG)], end) == [""]
    assert explained([loss(outcome=Outcome.RESET)], end) == ["killed"]


def test_time_counts_from_the_end_of_the_excuse() -> None:
    """While an excuse lasts nothing counts, afterwards the count begins anew; other promises count on."""
    excuses = [
        Excuse("a", frozenset({Promise.SIZE}), 2, 5),
        Excuse("b", frozenset({Promise.TICK}), 0, 9),
    ]

    assert unexcused(1, 8, Promise.SIZE, excuses) == 3
    assert unexcused(1, 4, Promise.SIZE, excuses) == 0
    assert unexcused(1, 8, Promise.REAP, excuses) == 7
    assert unexcused(1, 8, Promise.SIZE, [Excuse("c", frozenset({Promise.SIZE}), 7, math.inf)]) == 0


def test_result_is_good_only_without_anything_unexplained_or_broken() -> None:
    """One unexplained loss or one breach makes a run fail, and both stand in its table."""
    result = Result(episodes=1)
    other = Result(unexplained=["a loss"], breaches=["a breach"])

    assert result.is_good
    result.add(other)
    assert not result.is_good
    assert "a loss" in table(result)
    assert "a breach" in table(result)
    assert shortened(["a", "b", "c"], 2) == ["a", "b", "... and 1 more"]


# --- the children of the master


def none_excused(since: float, now: float, _promise: Promise) -> float:
    """Count everything."""
    return now - since


def children(*roles: Role, dead: Iterable[int] = ()) -> tuple[Child, ...]:
    """Return children with pids from 1 on."""
    return tuple(Child(pid, 0, role, pid in dead) for pid, role in enumerate(roles, 1))


def judged(judge: ChildrenJudge, *samples: Sample, floor: int = 0) -> list[Breach]:
    """Return what these samples break."""
    return [breach for one in samples for breach in judge.take(one, floor, none_excused)]


def test_one_worker_too_many_is_a_breach() -> None:
    """Workers count while they live; a child that becomes a worker later was one from the beginning."""
    three = children(Role.WORKER, Role.NEWBORN, Role.NEWBORN)
    later = children(Role.WORKER, Role.WORKER, Role.METRICS)

    assert judged(ChildrenJudge(1), Sample(0, "S", False, three), Sample(2, "S", False, later)) == [
        invariants.Breach(Invariant.I1, 0, "2 workers, of 1")
    ]
    assert not judged(ChildrenJudge(2), Sample(0, "S", False, three), Sample(2, "S", False, later))


def test_too_few_workers_for_too_long_is_a_breach() -> None:
    """A moment with a worker less is none, and neither is the time in which the master is stopped."""
    one, two = children(Role.WORKER), children(Role.WORKER, Role.WORKER)

    def broken(*samples: Sample) -> bool:
        return any(
            breach.invariant is Invariant.I2
            for breach in judged(ChildrenJudge(5), *samples, floor=2)
        )

    assert broken(*(Sample(at, "S", False, one) for at in (1, 2, 3, 4)))
    assert not broken(
        Sample(1, "S", False, one), Sample(2, "S", False, two), Sample(4, "S", False, one)
    )
    assert not broken(*(Sample(at, "T", True, one) for at in (1, 2, 3, 4)))


def test_dead_child_that_stays_is_a_breach_once() -> None:
    """The dead are to be collected within a second in which the master runs."""
    dead = children(Role.WORKER, dead=[1])
    judge = ChildrenJudge(5)

    assert not judged(judge, Sample(1, "S", False, dead), Sample(1.9, "S", False, dead))
    assert [
        one.invariant for one in judged(judge, *(Sample(at, "S", False, dead) for at in (2.5, 3)))
    ] == [Invariant.I6]
    assert not judged(ChildrenJudge(5), Sample(1, "T", True, dead), Sample(3, "T", True, dead))


def test_end_of_the_master_is_a_breach_once() -> None:
    """A master that is gone, or dead and not collected, is noticed."""
    gone = Sample(1, "", False, ())

    assert [one.invariant for one in judged(ChildrenJudge(5), gone, gone)] == [Invariant.I7]
    assert [one.invariant for one in judged(ChildrenJudge(5), gone._replace(master="Z"))] == [
        Invariant.I7
    ]


# --- the metrics


def scraped(*values: dict[str, float]) -> list[Invariant]:
    """Return what these scrapes break, one a second."""
    judge = ScrapeJudge(0)
    return [
        breach.invariant
        for at, one in enumerate(values)
        for breach in judge.take(at, 100 + at, one, away_at=-9, unexcused=none_excused)
    ]


def test_total_that_falls_is_a_breach() -> None:
    """Totals and histograms never fall; gauges may."""
    assert scraped({"a_total": 2.0}, {"a_total": 1.0}) == [Invariant.I8]
    assert scraped({"a_bucket": 2.0}, {}, {"a_bucket": 1.0}) == [Invariant.I8]
    assert scraped({"a": 2.0}, {"a": 1.0}) == []


def test_old_tick_and_too_many_generations_are_breaches() -> None:
    """The master looks around every half second, and no generation lives that no reload explains."""
    tick = "prefork_last_tick_timestamp_seconds"
    assert scraped({tick: 99.5}) == []
    assert scraped({tick: 97.0}) == [Invariant.I12]
    assert scraped(living(2)) == []
    assert scraped(living(3)) == [Invariant.I14]
    assert scraped(living(4) | reloads(0, failed=2)) == []
    assert scraped(living(5) | reloads(0, failed=2)) == [Invariant.I14]
    # While a reload that succeeds ends, workers of those that have failed before it are still there.
    assert scraped(reloads(0, failed=2), living(4) | reloads(1, failed=2)) == []
    assert scraped(reloads(1, failed=2), living(3) | reloads(2, failed=2)) == [Invariant.I14]


def living(generations: int) -> dict[str, float]:
    """Return a scrape in which a worker of each of these generations lives."""
    worker = 'prefork_worker_info{{slot="{0}",pid="1",generation="{0}"}}'
    return {worker.format(number): 1.0 for number in range(generations)}


def reloads(ok: int, *, failed: int) -> dict[str, float]:
    """Return a scrape that counts reloads."""
    name = "prefork_reloads_total"
    return {f'{name}{{result="ok"}}': ok, f'{name}{{result="failed"}}': failed}


def test_metrics_that_do_not_answer_are_a_breach() -> None:
    """A scrape may fail now and then, not for seconds."""
    judge = ScrapeJudge(0)

    assert not list(judge.take_none(2, none_excused))
    assert [one.invariant for one in judge.take_none(3, none_excused)] == [Invariant.I9]


# --- a rest

BASELINE = Baseline(workers=3, fds=30, per_worker=4, private=10 << 20)

RESTED = Rest(
    at=0,
    workers=4,
    zombies=0,
    values={
        'prefork_requests_total{outcome="ok"}': 100.0,
        'prefork_worker_requests_total{slot="0"}': 100.0,
        'prefork_workers{state="idle"}': 4.0,
        'prefork_worker_exits_total{cause="killed"}': 1.0,
        'prefork_worker_exits_total{cause="reloaded"}': 9.0,
    },
    taken=100,
    fds=34,
    private=12 << 20,
    share=0.01,
    lone={"tcp": 0.01},
    status={"workers": {"ready": 4}},
)


def test_pool_at_rest_breaks_nothing() -> None:
    """A pool that is as it should be is left in peace."""
    assert list(judge_rest(RESTED, BASELINE)) == []


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"fds": 35}, Invariant.I10),
        ({"private": 30 << 20}, Invariant.I11),
        ({"share": 0.9}, Invariant.I13),
        ({"lone": {"tcp": 2.0}}, Invariant.I5),
        ({"zombies": 1}, Invariant.I6),
        ({"taken": 102}, None),
        ({"taken": 200}, Invariant.I8),
        ({"taken": 98}, Invariant.I8),
        ({"status": {}}, Invariant.I9),
        ({"values": RESTED.values | {'prefork_workers{state="busy"}': 1.0}}, Invariant.I9),
        ({"values": RESTED.values | {"prefork_requests_in_progress": 1.0}}, Invariant.I8),
        (
            {"values": RESTED.values | {'prefork_requests_total{outcome="error"}': 1.0}},
            Invariant.I8,
        ),
    ],
)
def test_pool_at_rest_that_is_not_as_it_should_be(
    change: dict[str, object], broken: Invariant | None
) -> None:
    """Each figure that is off breaks the invariant that it belongs to."""
    found = [one.invariant for one in judge_rest(RESTED._replace(**change), BASELINE)]

    assert found == ([broken] if broken else [])


# --- the log

WHOLE = [
    "2026-01-02T03:04:05.678Z INFO    worker slot=0 gen=0 pid=5 spawned reason=started",
    "2026-01-02T03:04:05.678Z ERROR   worker slot=0 gen=0 pid=5 request failed",
    "    Traceback (most recent call last):",
    '      File "/x/prefork/workers/worker/loop.py", line 1, in serve',
    '      File "/x/app.py", line 1, in handle',
    "    ValueError: asked for",
    "2026-01-02T03:04:05.678Z ERROR   worker slot=0 gen=0 pid=5 exited cause=killed(SIGKILL) age=1",
]


def broken_by(lines: list[str], *, is_whole: bool = True) -> list[Invariant]:
    """Return what a log breaks."""
    return [one.invariant for one in judge_log(lines, 0, is_whole=is_whole)]


def test_log_has_whole_lines_and_one_exit_for_each_worker() -> None:
    """A torn line and a missing exit are breaches; in a log of which parts were lost only the former is."""
    assert broken_by(WHOLE) == []
    assert broken_by([*WHOLE, "26-01-02T03:04:05.678Z INFO    tail of a line"]) == [Invariant.I15]
    assert broken_by(WHOLE[:-1]) == [Invariant.I15]
    assert broken_by(WHOLE[:-1], is_whole=False) == []


def test_traceback_that_ends_in_prefork_is_a_breach() -> None:
    """An exception that a handler raises is its own; one that prefork raises is not."""
    lines = [*WHOLE[:4], "    KeyError: 3", WHOLE[-1]]

    assert broken_by(lines) == [Invariant.I15]


def test_death_that_nobody_has_asked_for_is_a_breach() -> None:
    """Each worker that died of itself or by a signal is one that the harness knows."""
    assert list(judge_deaths(WHOLE, 0, {5})) == []
    assert [one.invariant for one in judge_deaths(WHOLE, 0, set())] == [Invariant.I4]


# --- what an answer is worth


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"1f 9 3 2\nab", Outcome.ANSWERED),
        (b"1f 9 3 2\na", Outcome.CUT),
        (b"1f 9", Outcome.CUT),
        (b"", Outcome.CUT),
        (b"1f 9 3 2\nabc", Outcome.WRONG),
        (b"1f 9 3 2\nxb", Outcome.WRONG),
        (b"2f 9 3 2\nab", Outcome.WRONG),
        (b"1f 9 3 1\nab", Outcome.WRONG),
        (b"junk", Outcome.WRONG),
    ],
)
def test_every_byte_of_an_answer_counts(data: bytes, outcome: Outcome) -> None:
    """A prefix of the answer is one that was cut off, everything else that differs is wrong."""
    assert Question(0x1F, "quick", b"ab").judge(data)[0] is outcome


def test_request_that_asks_for_its_end_gets_no_answer() -> None:
    """A closed connection is what it asked for, and an answer would be wrong."""
    asked = Question(0x1F, "exit", b"ab")

    assert asked.judge(b"")[0] is Outcome.ENDED_AS_ASKED
    assert asked.judge(b"1f 9 3 2\nab")[0] is Outcome.WRONG


def test_large_answer_is_checked_to_its_last_byte() -> None:
    """A large answer follows from the nonce."""
    whole = service.payload(5, service.LARGE)
    head = b"5 9 3 %d\n" % service.LARGE

    assert Question(5, "large", b"").judge(head + whole)[0] is Outcome.ANSWERED
    assert Question(5, "large", b"").judge(head + whole[:-1])[0] is Outcome.CUT
    other = whole[:-1] + bytes([whole[-1] ^ 1])
    assert Question(5, "large", b"").judge(head + other)[0] is Outcome.WRONG
