"""The life of a pool: what each order does in each phase, for invented orders at invented times."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs import tables
from prefork.master.lifecycle import (
    ENTERS,
    SAME_ORDER,
    TRANSITIONS,
    Effect,
    Life,
    MasterOrder,
    advance,
    effect_of,
    has_stopped,
    next_instant,
    obey,
    reason_to_advance,
)
from prefork.workers.settings import Settings
from prefork.workers.states import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.once  # arithmetic: values in, values out

TERM, INT, QUIT, AGAIN = MasterOrder.TERM, MasterOrder.INT, MasterOrder.QUIT, MasterOrder.AGAIN
SHUTDOWN, FAILURE, USR1 = MasterOrder.SHUTDOWN, MasterOrder.FAILURE, MasterOrder.USR1
SERVING, NOT_READY, DRAINING = Phase.SERVING, Phase.NOT_READY, Phase.DRAINING
LEAVING, STOPPING_NOW = Phase.LEAVING, Phase.STOPPING_NOW

SENT = [order for order in MasterOrder if order is not AGAIN]
"""The orders that arrive. AGAIN is what some of them turn out to be."""

NOW, DELAY, GRACE = 1000.0, 5.0, 25.0
"""When every script begins; the drain_delay and the graceful_timeout, in seconds."""


# --- the table


def test_every_order_has_a_cell_in_every_phase() -> None:
    """No order is unclassified: the table has a cell for each order in each phase, and no other cell."""
    assert set(TRANSITIONS) == set(Phase)
    for row in TRANSITIONS.values():
        assert set(row) == set(MasterOrder)
    assert {cell for row in TRANSITIONS.values() for cell in row.values()} == set(Effect) - {
        Effect.REPEATED
    }


def test_no_cell_leads_backwards() -> None:
    """An effect that enters a phase enters a later one than the phase in which the order came."""
    for phase, row in TRANSITIONS.items():
        assert all(ENTERS[cell] > phase for cell in row.values() if cell in ENTERS)


def test_orders_for_a_serving_pool_mean_nothing_to_another() -> None:
    """HUP, USR2, TTIN and TTOU act on a pool that serves, and on no pool that was asked to stop."""
    for phase, row in TRANSITIONS.items():
        for order in (MasterOrder.HUP, MasterOrder.USR2, MasterOrder.TTIN, MasterOrder.TTOU):
            assert (row[order] is Effect.NONE) == (phase is not SERVING)


def test_status_can_be_had_in_every_phase() -> None:
    """USR1 reports whatever the pool is doing."""
    assert {row[USR1] for row in TRANSITIONS.values()} == {Effect.REPORT}


def test_table_of_the_docs_has_every_cell() -> None:
    """The docs' table has a row for each order and a column for each phase, and every cell says something."""
    header, _, *rows = [line.strip("| ").split(" | ") for line in tables.orders().splitlines()]

    assert header[1:] == [f"`{phase.name.lower()}`" for phase in Phase]
    assert len(rows) == len(MasterOrder)
    assert all(len(row) == len(header) and all(row) for row in rows)


# --- any orders at any time


class Tick(NamedTuple):
    """One tick of a pool: when it was, its order if there was one, and the life before and after."""

    now: float
    order: MasterOrder | None
    before: Life
    after: Life
    drain_delay: float


def lived(
    script: Sequence[tuple[float, MasterOrder | None]], drain_delay: float = DELAY
) -> list[Tick]:
    """Live through a script as the master does. It has the seconds since the previous tick, and an order."""
    settings = Settings(drain_delay=drain_delay, graceful_timeout=GRACE)
    life, now, ticks = Life(since=NOW), NOW, []
    for gap, order in script:
        before, now = life, now + gap
        if order is not None:
            life = obey(life, order, settings, now)
        life = advance(life, now)
        ticks.append(Tick(now, order, before, life, drain_delay))
    return ticks


GAPS = st.sampled_from([0.0, 0.001, 0.04, SAME_ORDER, 0.06, 0.4, 1.0, DELAY, GRACE, 30.0])
"""Seconds between two ticks, on both sides of each bound."""

SCRIPTS = st.lists(st.tuples(GAPS, st.sampled_from(SENT) | st.none()), max_size=30)

LIVES = st.builds(lived, SCRIPTS, st.sampled_from([0.0, 1.0, DELAY]))


def any_life(test: Callable[[list[Tick]], None]) -> Callable[[], None]:
    """Run a test with random orders at random times."""
    return given(LIVES)(test)


@any_life
def test_phases_never_go_backwards(ticks: list[Tick]) -> None:
    """Whatever is ordered and whenever, a pool never returns to an earlier phase."""
    for tick in ticks:
        assert tick.after.phase >= tick.before.phase


@any_life
def test_end_of_a_stop_is_promised_once(ticks: list[Tick]) -> None:
    """The order that ends SERVING sets the end of the stop, and nothing changes that end afterwards."""
    for now, order, before, after, drain_delay in ticks:
        if before.phase is not SERVING:
            assert after.stop_by == before.stop_by
        elif after.phase is SERVING:
            assert after.stop_by == 0.0
        else:
            # The additions in their order: floats are compared.
            assert after.stop_by == now + (drain_delay if order in (TERM, INT) else 0.0) + GRACE


@any_life
def test_cells_that_cannot_occur_do_not(ticks: list[Tick]) -> None:
    """No sequence of orders leads to a cell which says that it cannot occur."""
    for now, order, before, _, _ in ticks:
        if order is not None:
            assert effect_of(before, order, now) is not Effect.CANNOT_OCCUR


@any_life
def test_orders_without_effect_change_no_phase(ticks: list[Tick]) -> None:
    """An order enters the phase that its effect names, and no phase if its effect names none."""
    for now, order, before, after, _ in ticks:
        if order is not None:
            phase = ENTERS.get(effect_of(before, order, now), before.phase)
            # In the same tick the drain_delay may be over.
            assert after.phase in ((NOT_READY, DRAINING) if phase is NOT_READY else (phase,))


@any_life
def test_only_a_serving_pool_reloads_or_resizes(ticks: list[Tick]) -> None:
    """From the order that ends SERVING on, no order reloads the pool or changes its size."""
    for now, order, before, _, _ in ticks:
        if order is not None and effect_of(before, order, now) in (Effect.RELOAD, Effect.RESIZE):
            assert before.phase is SERVING


@any_life
def test_interrupt_is_remembered(ticks: list[Tick]) -> None:
    """serve_forever() ends with KeyboardInterrupt exactly if one of the orders was INT, in whatever phase."""
    for count, tick in enumerate(ticks, 1):
        assert tick.after.interrupted is any(one.order is INT for one in ticks[:count])


@any_life
def test_every_stop_ends(ticks: list[Tick]) -> None:
    """A pool that was asked to stop is over when no worker is left, at stop_by even if clients still wait."""
    for *_, life, _ in ticks:
        late = advance(life, life.stop_by)
        over = has_stopped(late, life.stop_by, workers=0, work_waiting=True)
        assert over is (life.phase is not SERVING)


@any_life
def test_no_pool_ends_with_workers(ticks: list[Tick]) -> None:
    """A life is never over while a worker is left, however late it is."""
    for *_, life, _ in ticks:
        assert not has_stopped(life, math.inf, workers=1, work_waiting=False)


@any_life
def test_time_moves_a_life_at_the_instant_it_names(ticks: list[Tick]) -> None:
    """Time changes a life at its next instant, not before; a life without one waits for an order."""
    for now, _, _, life, _ in ticks:
        at = next_instant(life)
        if at is None:
            assert advance(life, math.inf) is life
        else:
            assert at > now
            assert advance(life, math.nextafter(at, 0)) is life
            assert advance(life, at).phase > life.phase


@pytest.mark.parametrize(("delay", "why"), [(0.0, "no_drain_delay"), (2.0, "drain_delay")])
def test_reason_names_a_delay_only_where_there_is_one(delay: float, why: str) -> None:
    """The log says ``drain_delay`` for the end of NOT_READY only where the pool had a delay to wait for."""
    settings = Settings(drain_delay=delay)
    assert reason_to_advance(obey(Life(), MasterOrder.TERM, settings, 7.0)) == why


@any_life
def test_phases_are_dated(ticks: list[Tick]) -> None:
    """A life says since when it has been in its phase."""
    for now, _, before, after, _ in ticks:
        assert after.since == (before.since if after.phase is before.phase else now)


# --- some orders

LATER = 2 * SAME_ORDER


def end(*script: tuple[float, MasterOrder | None], drain_delay: float = DELAY) -> Life:
    """Return the life after a script."""
    return lived(script, drain_delay)[-1].after


@pytest.mark.parametrize(
    ("script", "phase"),
    [
        ([(0, TERM)], NOT_READY),
        ([(0, INT)], NOT_READY),
        ([(0, SHUTDOWN)], LEAVING),
        ([(0, FAILURE)], LEAVING),
        ([(0, QUIT)], STOPPING_NOW),
        ([(0, TERM), (DELAY, None)], DRAINING),
        # a second TERM or INT
        ([(0, TERM), (SAME_ORDER / 2, TERM)], NOT_READY),
        ([(0, TERM), (SAME_ORDER / 2, INT)], NOT_READY),
        ([(0, TERM), (LATER, TERM)], STOPPING_NOW),
        ([(0, TERM), (LATER, INT)], STOPPING_NOW),
        ([(0, INT), (LATER, TERM)], STOPPING_NOW),
        ([(0, TERM), (DELAY, None), (LATER, TERM)], STOPPING_NOW),
        # one that counts from the first, not from the one before
        ([(0, TERM), (SAME_ORDER * 0.7, TERM), (SAME_ORDER * 0.7, TERM)], STOPPING_NOW),
        # shutdown() and TERM
        ([(0, SHUTDOWN), (LATER, TERM)], LEAVING),
        ([(0, SHUTDOWN), (LATER, TERM), (LATER, TERM)], STOPPING_NOW),
        ([(0, TERM), (LATER, SHUTDOWN)], LEAVING),
        ([(0, TERM), (DELAY, None), (LATER, SHUTDOWN)], DRAINING),
        # a failure in the midst of a stop
        ([(0, TERM), (LATER, FAILURE)], LEAVING),
        ([(0, TERM), (DELAY, FAILURE)], LEAVING),
        ([(0, QUIT), (LATER, FAILURE)], STOPPING_NOW),
        ([(0, FAILURE), (LATER, SHUTDOWN), (LATER, TERM)], LEAVING),
    ],
    ids=str,
)
def test_orders_lead_to_a_phase(
    script: list[tuple[float, MasterOrder | None]], phase: Phase
) -> None:
    """Orders of a kind and of several kinds lead to the phase that docs/SIGNALS.md promises."""
    assert end(*script).phase is phase


@pytest.mark.parametrize(
    ("script", "dumps"),
    [
        ([(0, QUIT)], True),
        ([(0, TERM), (DELAY, None), (0, QUIT)], True),
        ([(0, TERM), (LATER, TERM)], False),
        ([(0, TERM), (LATER, TERM), (LATER, QUIT)], False),
        ([(0, QUIT), (SAME_ORDER / 2, QUIT)], True),
        ([(0, QUIT), (LATER, QUIT)], False),
        ([(0, QUIT), (LATER, TERM)], True),
        ([(0, QUIT), (LATER, TERM), (LATER, TERM)], False),
        ([(0, TERM), (LATER, QUIT), (LATER, TERM)], False),
    ],
    ids=str,
)
def test_quit_takes_the_stacks_first(
    script: list[tuple[float, MasterOrder | None]], *, dumps: bool
) -> None:
    """QUIT has the stacks logged before the kill; a second QUIT, or a second TERM, does not wait for them."""
    life = end(*script)

    assert (life.phase, life.dump_first) == (STOPPING_NOW, dumps)


def test_without_delay_term_drains_at_once() -> None:
    """Without a drain_delay the tick that takes TERM closes the intake."""
    assert end((0, TERM), drain_delay=0.0).phase is DRAINING


def test_queue_is_waited_for_only_while_draining() -> None:
    """Clients that are queued keep a draining pool without workers alive until stop_by, and no other pool."""
    draining = end((0, TERM), (DELAY, None))
    moment_before = math.nextafter(draining.stop_by, 0)

    assert not has_stopped(draining, moment_before, workers=0, work_waiting=True)
    assert has_stopped(draining, moment_before, workers=0, work_waiting=False)
    assert has_stopped(end((0, SHUTDOWN)), NOW, workers=0, work_waiting=True)


def test_pool_without_workers_serves_on() -> None:
    """A pool that serves, or accepts for its drain_delay, is not over when all its workers are dead."""
    for life in (Life(), end((0, TERM))):
        assert not has_stopped(life, NOW, workers=0, work_waiting=False)
