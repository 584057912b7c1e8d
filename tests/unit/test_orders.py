"""Orders to a whole master over invented processes: what it does, and what it leaves alone, in each phase."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from prefork.workers.scoreboard import PoolField
from prefork.workers.states import Phase
from tests.support.staged import TICK, StagedMaster

if TYPE_CHECKING:
    from collections.abc import Iterator

DELAY, GRACE = 5.0, 10.0
"""The drain_delay and the graceful_timeout of the pools here, in seconds."""

SIGNALS = {
    getattr(signal, f"SIG{name}")
    for name in ("TERM", "INT", "QUIT", "TTIN", "TTOU", "USR1", "HUP", "USR2")
}


@pytest.fixture
def stage() -> Iterator[StagedMaster]:
    """Give a master with two workers, and room for six."""
    with staged() as made:
        yield made


@contextlib.contextmanager
def staged() -> Iterator[StagedMaster]:
    """Make a master, whatever this process does with signals otherwise."""
    made = StagedMaster(workers=2, max_children=6, drain_delay=DELAY, graceful_timeout=GRACE)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        yield made
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        made.close()


def floor_of(stage: StagedMaster) -> int:
    """Return the number of workers that the master publishes as the one to keep."""
    return stage.pool.board.pool(PoolField.FLOOR)


def phase_of(stage: StagedMaster) -> Phase:
    """Return the phase that the master publishes."""
    return Phase(stage.pool.board.pool(PoolField.PHASE))


def changes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says of the pool's phases: old, new and why."""
    facts = [getattr(record, "facts", {}) for record in caplog.records]
    return [
        "{old} {new} {why}".format(**one) for one in facts if one.get("event") == "phase changed"
    ]


def into(phase: Phase, stage: StagedMaster) -> Iterator[float]:
    """Bring a pool that serves into a phase (a part of a play)."""
    stage.obedient = False
    match phase:
        case Phase.NOT_READY:
            signal.raise_signal(signal.SIGTERM)
        case Phase.DRAINING:
            signal.raise_signal(signal.SIGTERM)
            yield from stage.until(lambda: phase_of(stage) is Phase.NOT_READY)
            yield DELAY
        case Phase.LEAVING:
            stage.master.ask_shutdown()
        case Phase.STOPPING_NOW:
            signal.raise_signal(signal.SIGQUIT)
    yield from stage.until(lambda: phase_of(stage) is phase)


STOPPING = [phase for phase in Phase if phase is not Phase.SERVING]


@pytest.mark.parametrize("phase", STOPPING, ids=lambda phase: phase.name)
@pytest.mark.parametrize("name", ["SIGTTIN", "SIGTTOU", "SIGHUP", "SIGUSR2"])
def test_order_for_a_serving_pool_does_nothing_to_one_that_stops(
    stage: StagedMaster, caplog: pytest.LogCaptureFixture, name: str, phase: Phase
) -> None:
    """In each phase of a stop, TTIN, TTOU, HUP and USR2 are one line of the log and change nothing."""
    caplog.set_level(logging.INFO, "prefork")

    def play() -> Iterator[float]:
        yield from stage.boot()
        yield from into(phase, stage)
        signal.raise_signal(signal.Signals[name])
        yield 0.001
        assert floor_of(stage) == 2
        assert phase_of(stage) is phase
        stage.obedient = True

    stage.run(play())

    ignored = f"master order has no effect order={name} phase={phase.name.lower()}"
    assert caplog.messages.count(ignored) == 1
    assert stage.hooks("pool_resized") == []
    assert len(stage.hooks("worker_ready")) == 2


def test_order_in_the_tick_of_the_stop_does_nothing(stage: StagedMaster) -> None:
    """TTIN that comes in the same tick as TERM comes too late, whichever was sent first."""

    def play() -> Iterator[float]:
        yield from stage.boot()
        signal.raise_signal(signal.SIGTTIN)
        signal.raise_signal(signal.SIGTERM)
        yield 0.01

    stage.run(play())

    assert stage.hooks("pool_resized") == []


def test_serving_pool_changes_its_size(stage: StagedMaster) -> None:
    """Three TTIN and one TTOU in one tick are two workers more, in one step, and one call of the hook."""

    def play() -> Iterator[float]:
        yield from stage.boot()
        for number in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTIN, signal.SIGTTIN):
            signal.raise_signal(number)
        yield from stage.until(lambda: floor_of(stage) == 4)
        yield from stage.boot()

    stage.run(play())

    assert stage.hooks("pool_resized") == [[2, 4, "SIGTTIN"]]
    assert len(stage.hooks("worker_ready")) == 4


def test_stop_is_logged_phase_by_phase(
    stage: StagedMaster, caplog: pytest.LogCaptureFixture
) -> None:
    """Each phase that a pool enters is one line, with the phase before and the reason."""
    caplog.set_level(logging.INFO, "prefork")

    def play() -> Iterator[float]:
        yield from stage.boot()
        yield from into(Phase.DRAINING, stage)
        signal.raise_signal(signal.SIGINT)
        yield 0.1

    with pytest.raises(KeyboardInterrupt):
        stage.run(play())

    assert changes(caplog) == [
        "serving not_ready SIGTERM",
        "not_ready draining drain_delay",
        "draining stopping_now SIGINT",
    ]


def test_exception_is_the_reason_in_the_log(
    stage: StagedMaster, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of the master's loop has the pool leave, is named in the log, and leaves serve_forever()."""
    caplog.set_level(logging.INFO, "prefork")

    def play() -> Iterator[float]:
        yield from stage.boot()
        signal.raise_signal(signal.SIGTERM)
        yield 0.1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage.run(play())

    assert changes(caplog) == ["serving not_ready SIGTERM", "not_ready leaving ZeroDivisionError"]
    assert len(stage.hooks("worker_died")) == 2


GAP = 2.0
"""Most seconds between two ticks of a script."""

ORDERS = st.lists(
    st.tuples(
        st.sampled_from([0.001, 0.06, 0.5, GAP]),
        st.sampled_from(sorted(SIGNALS - {signal.SIGHUP, signal.SIGUSR2})) | st.none(),
    ),
    max_size=15,
)
"""Scripts: a signal, or shutdown() for None, and the seconds until the next one. A reload would start a process."""


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ORDERS, st.booleans())
def test_pool_ends_in_time_whatever_it_is_ordered(
    caplog: pytest.LogCaptureFixture, orders: list[tuple[float, int | None]], obedient: bool
) -> None:
    """Whatever is ordered, and whether workers obey or not: a stop takes phase after phase, ends in time, and no size changes meanwhile."""
    caplog.clear()
    caplog.set_level(logging.INFO, "prefork")
    stopping: list[float] = []

    def play() -> Iterator[float]:
        yield from stage.boot()
        stage.obedient = obedient
        for gap, number in [*orders, (0.0, None)]:
            if number is None:
                stage.master.ask_shutdown()
            else:
                signal.raise_signal(number)
            yield gap
            if changes(caplog):
                stopping.append(stage.now)
        yield from itertools.repeat(0.25)

    with staged() as stage, contextlib.suppress(KeyboardInterrupt):
        # A stop that comes too late for the pool is the program's. The default action would end the tests.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda *_: None)
        stage.run(play())

    # From then on three ticks: for the dump, for the kill, and to collect the workers.
    promised = min(stopping, default=stage.now) + DELAY + GRACE
    assert stage.now <= promised + 3 * (GAP + TICK)
    entered = [Phase[line.split()[1].upper()] for line in changes(caplog)]
    assert entered == sorted(set(entered))
    events = [getattr(record, "facts", {}).get("event") for record in caplog.records]
    assert "resized" not in events[events.index("phase changed") :]
    assert stage.pids[-1] == set()
